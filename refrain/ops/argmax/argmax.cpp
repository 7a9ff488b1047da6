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
  expect_dtype(call, kInput, DType::f32);
  expect_tensor(call, kOutput, DType::u32, {input[0]});
  const auto& constants = call.constants_as<ArgmaxConstants>();
  expect_constant(call, "rows", static_cast<uint64_t>(input[0]), constants.rows);
  expect_constant(call, "columns", static_cast<uint64_t>(input[1]), constants.columns);
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& constants = call.constants_as<ArgmaxConstants>();
  return {.bytes = argument_bytes(call.args[kInput]) + argument_bytes(call.args[kOutput]),
          .flops = uint64_t{constants.rows} * constants.columns};
}

}  // namespace

constinit const backend::OpSchema argmax_schema = {
    .name = "argmax",
    .doc =
        "Finds the greatest value of each row: output[r] = the least i with input[r, i] = max over j of "
        "input[r, j]. input f32 [R, V]; output u32 [R]. NaNs are never the greatest; a row of nothing but "
        "NaNs "
        "gives 0. Exact.",
    .args = kArgs,
    .constants_bytes = sizeof(ArgmaxConstants),
    .check = check,
    .cost = cost,
    .reference = argmax_reference,
};

void argmax(CommandEncoder& encoder, const Argmax& args) {
  const ArgmaxConstants constants = {
      .rows = dimension(args.input.shape(), 0),
      .columns = dimension(args.input.shape(), 1),
  };
  const Operand operands[] = {args.input, args.output};
  dispatch(encoder, argmax_schema, operands, constants);
}

backend::Launch argmax_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return {.rows = call.constants_as<ArgmaxConstants>().rows};
}

}  // namespace refrain::ops
