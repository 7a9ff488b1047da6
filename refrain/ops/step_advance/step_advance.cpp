// Advance of the step block: schema, checks and recording.
#include "refrain/ops/step_advance/step_advance.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kRows, kSequences, kTokens };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "rows", .access = backend::Access::inout, .rows = true},
    {.name = "sequences", .access = backend::Access::inout},
    {.name = "tokens", .access = backend::Access::out, .rows = true, .optional = true},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kRows, 2, 2, "[rows, 4]");
  const int64_t rows = call.args[kRows].shape[0];
  expect_tensor(call, kRows, DType::u32, {rows, 4});
  expect_rank(call, kSequences, 2, 2, "[sequences, 8]");
  const int64_t sequences = call.args[kSequences].shape[0];
  expect_tensor(call, kSequences, DType::u32, {sequences, 8});
  if (call.args[kTokens].bound) expect_tensor(call, kTokens, DType::u32, {rows});
  const auto& constants = call.constants_as<StepAdvanceConstants>();
  expect_constant(call, "rows", static_cast<uint64_t>(rows), constants.rows);
  expect_constant(call, "sequences", static_cast<uint64_t>(sequences), constants.sequences);
}

backend::Cost cost(const backend::OpCall& call) {
  // Three words of a row and one of a sequence are read or written, some of them both.
  return {.bytes = uint64_t{24} * call.constants_as<StepAdvanceConstants>().rows, .flops = 0};
}

}  // namespace

constinit const backend::OpSchema step_advance_schema = {
    .name = "step_advance",
    .doc =
        "Makes the sampled token of each row the next one to be computed. "
        "For each live row, in order: token = sampled, position += 1, length of its sequence = position + 1. "
        "rows u32 [R, 4] and sequences u32 [S, 8], read and written. tokens u32 [R], optional: the sampled "
        "ones, "
        "for whoever waits for the step. Position and length stop at 2^32 - 1; a "
        "row "
        "whose sequence is out of range changes no sequence.",
    .args = kArgs,
    .constants_bytes = sizeof(StepAdvanceConstants),
    .check = check,
    .cost = cost,
    .reference = step_advance_reference,
};

void step_advance(CommandEncoder& encoder, const StepAdvance& args) {
  const StepAdvanceConstants constants = {
      .rows = dimension(args.rows.shape(), 0),
      .sequences = dimension(args.sequences.shape(), 0),
  };
  const Operand operands[] = {args.rows, args.sequences, args.tokens};
  dispatch(encoder, step_advance_schema, operands, constants);
}

}  // namespace refrain::ops
