// Advance of the slots: schema, checks and recording.
#include "refrain/ops/step_advance/step_advance.h"

#include <bit>

#include "refrain/ops/check.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

enum : size_t { kSegments, kRows, kStopSets, kSlots, kStatus, kRing };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "segments", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "rows", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "stop_sets", .access = backend::Access::in, .optional = true, .dtypes = {DType::u32}},
    {.name = "slots", .access = backend::Access::inout, .dtypes = {DType::u32}},
    {.name = "status", .access = backend::Access::inout, .dtypes = {DType::u32}},
    {.name = "ring", .access = backend::Access::inout, .dtypes = {DType::u32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kSegments, 2, 2, "[segments, 4]");
  const int64_t segments = call.args[kSegments].shape[0];
  expect_shape(call, kSegments, {segments, 4});
  expect_rank(call, kRows, 2, 2, "[rows, 4]");
  const int64_t rows = call.args[kRows].shape[0];
  expect_shape(call, kRows, {rows, 4});
  if (call.args[kStopSets].bound) {
    expect_rank(call, kStopSets, 2, 2, "[stop sets, 16]");
    expect_shape(call, kStopSets, {call.args[kStopSets].shape[0], kStopIds});
  }
  expect_rank(call, kSlots, 2, 2, "[slots, 16]");
  const int64_t slots = call.args[kSlots].shape[0];
  expect_shape(call, kSlots, {slots, 16});
  expect_shape(call, kStatus, {slots + 1});
  expect_rank(call, kRing, 1, 1, "[4 + 4 entries]");
  const auto words = static_cast<uint64_t>(call.args[kRing].shape[0]);
  const uint64_t entries = words / 4 - (words < 8 ? 0 : 1);
  if (words != 4 + 4 * entries || !std::has_single_bit(entries))
    fail(call, kRing, "4 words and a power of two of 4 words", to_string(call.args[kRing].shape));
}

void complete(const backend::OpCall& call, StepAdvanceConstants& c) {
  c.segments = dimension(call.args[kSegments].shape, 0);
  c.rows = dimension(call.args[kRows].shape, 0);
  c.stop_sets = call.args[kStopSets].bound ? dimension(call.args[kStopSets].shape, 0) : 0;
  c.slots = dimension(call.args[kSlots].shape, 0);
  c.entries = dimension(call.args[kRing].shape, 0) / 4 - 1;
}

backend::Cost cost(const backend::OpCall& call) {
  // A segment, its last row, a line of its slot twice, its status and a result.
  return {.bytes = uint64_t{180} * call.constants_as<StepAdvanceConstants>().segments, .flops = 0};
}

}  // namespace

constinit const backend::OpSchema step_advance_schema = {
    .name = "step_advance",
    .args = kArgs,
    .constants_bytes = sizeof(StepAdvanceConstants),
    .check = check,
    .complete = complete_as<StepAdvanceConstants, complete>,
    .cost = cost,
    .reference = step_advance_reference,
};

void step_advance(CommandEncoder& encoder, const StepAdvance& args) {
  const Operand operands[] = {args.segments, args.rows, args.stop_sets, args.slots, args.status, args.ring};
  dispatch(encoder, step_advance_schema, operands,
           StepAdvanceConstants{.context_tokens = args.context_tokens});
}

}  // namespace refrain::ops
