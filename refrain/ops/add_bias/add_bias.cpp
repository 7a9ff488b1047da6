// add_bias: schema and recording.
#include "refrain/ops/add_bias/add_bias.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "bias", .access = backend::Access::in},
    {.name = "output",
     .access = backend::Access::out,
     .rows = true,
     .in_place = 0b1,
     .units = true,
     .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, 0, 2, 2, "[rows, columns]");
  const Shape& shape = call.args[0].shape;
  expect_weight(call, 1, {backend::Use::vector});
  expect_shape(call, 1, Shape{shape.back()});
  expect_shape(call, 2, shape);
}

backend::Cost cost(const backend::OpCall& call) {
  uint64_t bytes = 0;
  for (const backend::ArgumentInfo& argument : call.args) bytes += argument_bytes(argument);
  return {bytes, static_cast<uint64_t>(call.args[0].shape.elements())};
}

}  // namespace

void add_bias_reference(const backend::TileArgs& args);

constinit const backend::OpSchema add_bias_schema{
    .name = "add_bias",
    .args = kArgs,
    .constants_bytes = sizeof(AddBiasConstants),
    .check = check,
    .complete = complete_elementwise,
    .cost = cost,
    .reference = add_bias_reference,
    .iteration = backend::Iteration::elementwise,
    .units = elementwise_units,
};

void add_bias(CommandEncoder& encoder, const AddBias& args) {
  const Operand operands[] = {args.input, args.bias, args.output};
  dispatch(encoder, add_bias_schema, operands, AddBiasConstants{});
}

}  // namespace refrain::ops
