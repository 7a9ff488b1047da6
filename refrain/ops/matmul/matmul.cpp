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
  expect_rank(call, 0, 2, 2, "[rows, columns]");
  expect_weight(call, 1, {backend::Use::matvec, backend::Use::matmul});
  expect_rank(call, 1, 2, 2, "[outputs, columns]");
  const Shape& input = call.args[0].shape;
  const Shape& weight = call.args[1].shape;
  expect_shape(call, 1, Shape{weight[0], input[1]});
  expect_shape(call, 2, Shape{input[0], weight[0]});
}

void complete(const backend::OpCall& call, MatmulConstants& c) {
  const Shape& weight = call.args[1].shape;
  c = {.rows = dimension(call.args[0].shape, 0),
       .outputs = dimension(weight, 0),
       .columns = dimension(weight, 1),
       .format = call.args[1].weight->format};
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
    .args = kArgs,
    .constants_bytes = sizeof(MatmulConstants),
    .check = check,
    .complete = complete_as<MatmulConstants, complete>,
    .cost = cost,
    .reference = matmul_reference,
    .iteration = backend::Iteration::contraction,
    .units = [](const backend::OpCall& call) { return call.constants_as<MatmulConstants>().outputs; },
};

void matmul(CommandEncoder& encoder, const Matmul& args) {
  const Operand operands[] = {args.input, args.weight, args.output};
  dispatch(encoder, matmul_schema, operands, MatmulConstants{});
}

}  // namespace refrain::ops
