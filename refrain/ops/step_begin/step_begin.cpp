// Begin of a step: schema, checks and recording.
#include "refrain/ops/step_begin/step_begin.h"

#include "refrain/ops/check.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

enum : size_t { kBlock, kSlots, kLive, kRows, kSegments, kOutputs, kStatus };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "block", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "slots", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "live", .access = backend::Access::out, .dtypes = {DType::u32}},
    {.name = "rows", .access = backend::Access::out, .dtypes = {DType::u32}},
    {.name = "segments", .access = backend::Access::out, .dtypes = {DType::u32}},
    {.name = "outputs", .access = backend::Access::out, .dtypes = {DType::u32}},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kSlots, 2, 2, "[slots, 16]");
  const int64_t slots = call.args[kSlots].shape[0];
  expect_shape(call, kSlots, {slots, 16});
  expect_shape(call, kLive, {4});
  expect_rank(call, kRows, 2, 2, "[rows, 4]");
  const int64_t rows = call.args[kRows].shape[0];
  expect_shape(call, kRows, {rows, 4});
  expect_rank(call, kSegments, 2, 2, "[segments, 4]");
  const int64_t segments = call.args[kSegments].shape[0];
  expect_shape(call, kSegments, {segments, 4});
  expect_rank(call, kOutputs, 1, 1, "[outputs]");
  const int64_t outputs = call.args[kOutputs].shape[0];
  expect_rank(call, kBlock, 1, 1, "[words]");
  const int64_t words = 4 + 4 * segments + rows + outputs;
  if (call.args[kBlock].shape[0] < words)
    fail(call, kBlock, "at least " + to_string(Shape{words}), to_string(call.args[kBlock].shape));
  expect_shape(call, kStatus, {slots + 1});
}

void complete(const backend::OpCall& call, StepBeginConstants& c) {
  c.rows = dimension(call.args[kRows].shape, 0);
  c.segments = dimension(call.args[kSegments].shape, 0);
  c.outputs = dimension(call.args[kOutputs].shape, 0);
  c.slots = dimension(call.args[kSlots].shape, 0);
}

backend::Cost cost(const backend::OpCall& call) {
  // The block is read and what it resolves to is written; of a slot, one line.
  const auto& c = call.constants_as<StepBeginConstants>();
  return {.bytes = 2 * argument_bytes(call.args[kRows]) + uint64_t{64} * c.segments, .flops = 0};
}

}  // namespace

constinit const backend::OpSchema step_begin_schema = {
    .name = "step_begin",
    .args = kArgs,
    .constants_bytes = sizeof(StepBeginConstants),
    .check = check,
    .complete = complete_as<StepBeginConstants, complete>,
    .cost = cost,
    .reference = step_begin_reference,
};

void step_begin(CommandEncoder& encoder, const StepBegin& args) {
  const Operand operands[] = {args.block,    args.slots,   args.live,  args.rows,
                              args.segments, args.outputs, args.status};
  dispatch(encoder, step_begin_schema, operands, StepBeginConstants{.context_tokens = args.context_tokens});
}

}  // namespace refrain::ops
