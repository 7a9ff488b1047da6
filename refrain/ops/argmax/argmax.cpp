// Argmax: schema, checks and recording.
#include "refrain/ops/argmax/argmax.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kInput, kOutput };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = backend::Access::in, .rows = true, .dtypes = {DType::f32}},
    {.name = "output", .access = backend::Access::out, .rows = true, .dtypes = {DType::u32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kInput, 2, 2, "[rows, columns]");
  const Shape& input = call.args[kInput].shape;
  expect_shape(call, kOutput, {input[0]});
}

void complete(const backend::OpCall& call, ArgmaxConstants& c) {
  c = {.rows = dimension(call.args[kInput].shape, 0), .columns = dimension(call.args[kInput].shape, 1)};
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& constants = call.constants_as<ArgmaxConstants>();
  return {.bytes = argument_bytes(call.args[kInput]) + argument_bytes(call.args[kOutput]),
          .flops = uint64_t{constants.rows} * constants.columns};
}

}  // namespace

constinit const backend::OpSchema argmax_schema = {
    .name = "argmax",
    .args = kArgs,
    .constants_bytes = sizeof(ArgmaxConstants),
    .check = check,
    .complete = complete_as<ArgmaxConstants, complete>,
    .cost = cost,
    .reference = argmax_reference,
};

void argmax(CommandEncoder& encoder, const Argmax& args) {
  const Operand operands[] = {args.input, args.output};
  dispatch(encoder, argmax_schema, operands, ArgmaxConstants{});
}

backend::Launch argmax_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return {.rows = call.constants_as<ArgmaxConstants>().rows};
}

}  // namespace refrain::ops
