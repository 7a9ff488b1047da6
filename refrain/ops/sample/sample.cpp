// Sampling: schema, checks and recording.
#include "refrain/ops/sample/sample.h"

#include "refrain/core/checked.h"
#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kLogits, kIndex, kStepRows, kSlots, kMasks, kStatus };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "logits", .access = backend::Access::in, .rows = true, .dtypes = {DType::f32}},
    {.name = "index", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "step_rows", .access = backend::Access::inout, .dtypes = {DType::u32}},
    {.name = "slots", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "masks", .access = backend::Access::in, .optional = true, .dtypes = {DType::u32}},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kLogits, 2, 2, "[rows, vocabulary]");
  const Shape& logits = call.args[kLogits].shape;
  if (logits[1] > int64_t{1} << 31) fail(call, kLogits, "at most 2^31 columns", to_string(logits));
  expect_shape(call, kIndex, {logits[0]});
  expect_rank(call, kStepRows, 2, 2, "[step rows, 4]");
  const int64_t step_rows = call.args[kStepRows].shape[0];
  expect_shape(call, kStepRows, {step_rows, 4});
  expect_rank(call, kSlots, 2, 2, "[slots, 16]");
  const int64_t slots = call.args[kSlots].shape[0];
  expect_shape(call, kSlots, {slots, 16});
  if (call.args[kMasks].bound) {
    expect_rank(call, kMasks, 2, 2, "[masks, words]");
    expect_shape(call, kMasks, {call.args[kMasks].shape[0], (logits[1] + 31) / 32});
  }
  expect_shape(call, kStatus, {slots + 1});
}

void complete(const backend::OpCall& call, SampleConstants& c) {
  const Shape& logits = call.args[kLogits].shape;
  c = {.rows = dimension(logits, 0),
       .vocabulary = dimension(logits, 1),
       .step_rows = dimension(call.args[kStepRows].shape, 0),
       .slots = dimension(call.args[kSlots].shape, 0),
       .masks = call.args[kMasks].bound ? dimension(call.args[kMasks].shape, 0) : 0};
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& constants = call.constants_as<SampleConstants>();
  // A subtraction, a division, an exponential of 30 operations and a sum for each logit.
  return {.bytes = argument_bytes(call.args[kLogits]),
          .flops = uint64_t{33} * constants.rows * constants.vocabulary};
}

}  // namespace

constinit const backend::OpSchema sample_schema = {
    .name = "sample",
    .args = kArgs,
    .constants_bytes = sizeof(SampleConstants),
    .check = check,
    .complete = complete_as<SampleConstants, complete>,
    .cost = cost,
    .reference = sample_reference,
};

void sample(CommandEncoder& encoder, const Sample& args) {
  const Operand operands[] = {args.logits, args.index, args.step_rows, args.slots, args.masks, args.status};
  dispatch(encoder, sample_schema, operands, SampleConstants{});
}

backend::Launch sample_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& constants = call.constants_as<SampleConstants>();
  backend::Launch launch;
  launch.rows = constants.rows;
  launch.scratch_bytes = align_up(size_t{8} * constants.vocabulary, 64);
  return launch;
}

}  // namespace refrain::ops
