// matmul: schema and recording.
#include "refrain/ops/matmul/matmul.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = backend::Access::in, .rows = true, .dtypes = {DType::f32}},
    {.name = "weight", .access = backend::Access::in},
    {.name = "output", .access = backend::Access::out, .rows = true, .units = true, .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_dtype(call, 0, DType::f32);
  expect_rank(call, 0, 2, 2, "[rows, columns]");
  expect_weight(call, 1, {backend::Use::matvec, backend::Use::matmul});
  expect_rank(call, 1, 2, 2, "[outputs, columns]");
  const Shape& input = call.args[0].shape;
  const Shape& weight = call.args[1].shape;
  expect_shape(call, 1, Shape{weight[0], input[1]});
  expect_tensor(call, 2, DType::f32, Shape{input[0], weight[0]});
  const auto& c = call.constants_as<MatmulConstants>();
  expect_constant(call, "rows", dimension(input, 0), c.rows);
  expect_constant(call, "outputs", dimension(weight, 0), c.outputs);
  expect_constant(call, "columns", dimension(input, 1), c.columns);
  expect_format(call, 1, c.format);
}

backend::Cost cost(const backend::OpCall& call) {
  uint64_t bytes = 0;
  for (const backend::ArgumentInfo& argument : call.args) bytes += argument_bytes(argument);
  const auto& c = call.constants_as<MatmulConstants>();
  return {bytes, uint64_t{2} * c.rows * c.outputs * c.columns};
}

}  // namespace

void matmul_reference(const backend::TileArgs& args);

constinit const backend::OpSchema matmul_schema{
    .name = "matmul",
    .doc =
        "Multiplies rows by the transpose of a weight matrix. output[r, n] = sum over k of input[r, k] * "
        "weight[n, k]. "
        "input: f32 [R, K]; weight: Weight [N, K] of any format; output: f32 [R, N]. No aliasing. Error "
        "below (K / 8 "
        "+ 6) * 2^-24 * sum over k of |input * weight|; where scales are f32, more by 2^-24 * sum over k of "
        "|input| * "
        "(2 * |weight| + |scale * code|).",
    .args = kArgs,
    .constants_bytes = sizeof(MatmulConstants),
    .check = check,
    .cost = cost,
    .reference = matmul_reference,
    .iteration = backend::Iteration::contraction,
    .units = [](const backend::OpCall& call) { return call.constants_as<MatmulConstants>().outputs; },
};

void matmul(CommandEncoder& encoder, const Matmul& args) {
  const Operand operands[] = {args.input, args.weight, args.output};
  MatmulConstants constants;
  constants.rows = dimension(args.input.shape(), 0);
  constants.columns = dimension(args.input.shape(), 1);
  constants.outputs = dimension(args.weight.shape(), 0);
  constants.format = args.weight.format();
  dispatch(encoder, matmul_schema, operands, constants);
}

}  // namespace refrain::ops
