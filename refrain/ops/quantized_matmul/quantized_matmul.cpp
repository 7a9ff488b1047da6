// quantized_matmul: schema and recording.
#include "refrain/ops/quantized_matmul/quantized_matmul.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {"input", backend::Access::in, true},
    {"weight", backend::Access::in},
    {.name = "output", .access = backend::Access::out, .rows = true, .units = true},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_dtype(call, 0, DType::f32);
  expect_rank(call, 0, 2, 2, "[rows, columns]");
  expect_weight(call, 1, {WeightFormat::mlx_affine}, {backend::Use::matvec, backend::Use::matmul});
  expect_rank(call, 1, 2, 2, "[outputs, columns]");
  const Shape& input = call.args[0].shape;
  const Shape& weight = call.args[1].shape;
  expect_shape(call, 1, Shape{weight[0], input[1]});
  expect_tensor(call, 2, DType::f32, Shape{input[0], weight[0]});
  const auto& c = call.constants_as<QuantizedMatmulConstants>();
  expect_constant(call, "rows", dimension(input, 0), c.rows);
  expect_constant(call, "outputs", dimension(weight, 0), c.outputs);
  expect_constant(call, "columns", dimension(input, 1), c.columns);
  const backend::WeightInfo& info = *call.args[1].weight;
  expect_constant(call, "bits", info.bits, c.bits);
  expect_constant(call, "group_size", info.group_size, c.group_size);
  expect_constant(call, "dtype", static_cast<uint64_t>(info.dtype), c.dtype);
}

backend::Cost cost(const backend::OpCall& call) {
  uint64_t bytes = 0;
  for (const backend::ArgumentInfo& argument : call.args) bytes += argument_bytes(argument);
  const auto& c = call.constants_as<QuantizedMatmulConstants>();
  return {bytes, uint64_t{2} * c.rows * c.outputs * c.columns};
}

}  // namespace

void quantized_matmul_reference(const backend::TileArgs& args);

constinit const backend::OpSchema quantized_matmul_schema{
    .name = "quantized_matmul",
    .doc =
        "Multiplies rows by the transpose of a quantized weight matrix. output[r, n] = sum over k of "
        "input[r, k] * "
        "(scale[n, k / g] * code[n, k] + bias[n, k / g]). input: f32 [R, K]; weight: Weight [N, K], MLX "
        "affine, 4 or "
        "8 bits, groups of 32, 64 or 128; output: f32 [R, N]. No aliasing. Error below 2^-24 * sum over k of "
        "|input| "
        "* ((K / 8 + 7) * |weight| + |scale * code|).",
    .args = kArgs,
    .constants_bytes = sizeof(QuantizedMatmulConstants),
    .check = check,
    .cost = cost,
    .reference = quantized_matmul_reference,
    .iteration = backend::Iteration::contraction,
    .units =
        [](const backend::OpCall& call) { return call.constants_as<QuantizedMatmulConstants>().outputs; },
};

void quantized_matmul(CommandEncoder& encoder, const QuantizedMatmul& args) {
  const Operand operands[] = {args.input, args.weight, args.output};
  const backend::WeightInfo* weight = args.weight.weight_info();
  QuantizedMatmulConstants constants;
  constants.rows = dimension(args.input.shape(), 0);
  constants.columns = dimension(args.input.shape(), 1);
  constants.outputs = dimension(args.weight.shape(), 0);
  if (weight != nullptr) {
    constants.bits = weight->bits;
    constants.group_size = weight->group_size;
    constants.dtype = static_cast<uint32_t>(weight->dtype);
  }
  dispatch(encoder, quantized_matmul_schema, operands, constants);
}

}  // namespace refrain::ops
