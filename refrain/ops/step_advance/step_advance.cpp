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
  expect_tensor(call, kSegments, DType::u32, {segments, 4});
  expect_rank(call, kRows, 2, 2, "[rows, 4]");
  const int64_t rows = call.args[kRows].shape[0];
  expect_tensor(call, kRows, DType::u32, {rows, 4});
  int64_t stop_sets = 0;
  if (call.args[kStopSets].bound) {
    expect_rank(call, kStopSets, 2, 2, "[stop sets, 16]");
    stop_sets = call.args[kStopSets].shape[0];
    expect_tensor(call, kStopSets, DType::u32, {stop_sets, kStopIds});
  }
  expect_rank(call, kSlots, 2, 2, "[slots, 16]");
  const int64_t slots = call.args[kSlots].shape[0];
  expect_tensor(call, kSlots, DType::u32, {slots, 16});
  expect_tensor(call, kStatus, DType::u32, {slots + 1});
  expect_rank(call, kRing, 1, 1, "[4 + 4 entries]");
  expect_dtype(call, kRing, DType::u32);
  const auto words = static_cast<uint64_t>(call.args[kRing].shape[0]);
  const uint64_t entries = words / 4 - (words < 8 ? 0 : 1);
  if (words != 4 + 4 * entries || !std::has_single_bit(entries))
    fail(call, kRing, "4 words and a power of two of 4 words", to_string(call.args[kRing].shape));
  const auto& constants = call.constants_as<StepAdvanceConstants>();
  expect_constant(call, "segments", static_cast<uint64_t>(segments), constants.segments);
  expect_constant(call, "rows", static_cast<uint64_t>(rows), constants.rows);
  expect_constant(call, "stop_sets", static_cast<uint64_t>(stop_sets), constants.stop_sets);
  expect_constant(call, "slots", static_cast<uint64_t>(slots), constants.slots);
  expect_constant(call, "entries", entries, constants.entries);
}

backend::Cost cost(const backend::OpCall& call) {
  // A segment, its last row, a line of its slot twice, its status and a result.
  return {.bytes = uint64_t{180} * call.constants_as<StepAdvanceConstants>().segments, .flops = 0};
}

}  // namespace

constinit const backend::OpSchema step_advance_schema = {
    .name = "step_advance",
    .doc =
        "Moves the slot of each segment to behind its last row, and appends what came of it to the ring. "
        "length = position + 1, last_token = sampled, stopped = at a stop id, the limit, the context's end "
        "or an "
        "error. "
        "segments u32 [G, 4]; rows u32 [R, 4]; stop_sets u32 [T, 16], optional; slots u32 [S, 16]; status "
        "u32 [S + 1], "
        "told and zeroed; ring u32 [4 + 4 N]. Out of range: skipped.",
    .args = kArgs,
    .constants_bytes = sizeof(StepAdvanceConstants),
    .check = check,
    .cost = cost,
    .reference = step_advance_reference,
};

void step_advance(CommandEncoder& encoder, const StepAdvance& args) {
  const uint32_t words = dimension(args.ring.shape(), 0);
  const StepAdvanceConstants constants = {
      .segments = dimension(args.segments.shape(), 0),
      .rows = dimension(args.rows.shape(), 0),
      .stop_sets = dimension(args.stop_sets.shape(), 0),
      .slots = dimension(args.slots.shape(), 0),
      .entries = words / 4 - (words < 8 ? 0 : 1),
      .context_tokens = args.context_tokens,
  };
  const Operand operands[] = {args.segments, args.rows, args.stop_sets, args.slots, args.status, args.ring};
  dispatch(encoder, step_advance_schema, operands, constants);
}

}  // namespace refrain::ops
