// The merge of attention's parts: schema, checks and recording.
#include "refrain/ops/attention_merge/attention_merge.h"

#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kSums, kWeighted, kRows, kOutput };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "sums", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "weighted", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "rows", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "output", .access = backend::Access::out, .rows = true, .units = true, .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kWeighted, 4, 4, "[rows, chunks, heads, head_dim]");
  const Shape& weighted = call.args[kWeighted].shape;
  expect_shape(call, kSums, {weighted[0], weighted[1], weighted[2], 2});
  expect_shape(call, kRows, {weighted[0], 4});
  expect_shape(call, kOutput, {weighted[0], weighted[2], weighted[3]});
  const auto& constants = call.constants_as<AttentionMergeConstants>();
  expect_constant(call, "rows", static_cast<uint64_t>(weighted[0]), constants.rows);
  expect_constant(call, "chunks", static_cast<uint64_t>(weighted[1]), constants.chunks);
  expect_constant(call, "heads", static_cast<uint64_t>(weighted[2]), constants.heads);
  expect_constant(call, "head_dim", static_cast<uint64_t>(weighted[3]), constants.head_dim);
}

backend::Cost cost(const backend::OpCall& call) {
  const auto& c = call.constants_as<AttentionMergeConstants>();
  backend::Cost result;
  for (const backend::ArgumentInfo& argument : call.args) result.bytes += argument_bytes(argument);
  result.flops = 4 * uint64_t{c.rows} * c.chunks * c.heads * c.head_dim;
  return result;
}

}  // namespace

constinit const backend::OpSchema attention_merge_schema = {
    .name = "attention_merge",
    .args = kArgs,
    .constants_bytes = sizeof(AttentionMergeConstants),
    .check = check,
    .cost = cost,
    .reference = attention_merge_reference,
    // As a norm: cheap for what it feeds, the product behind attention, which each worker gives it in scratch.
    .iteration = backend::Iteration::row_reduction,
    .units = [](const backend::OpCall&) { return 1u; },
};

void attention_merge(CommandEncoder& encoder, const AttentionMerge& args) {
  const Shape& weighted = args.weighted.shape();
  const AttentionMergeConstants constants = {.rows = dimension(weighted, 0),
                                             .heads = dimension(weighted, 2),
                                             .head_dim = dimension(weighted, 3),
                                             .chunks = dimension(weighted, 1),
                                             .window = args.window};
  const Operand operands[] = {args.sums, args.weighted, args.rows, args.output};
  dispatch(encoder, attention_merge_schema, operands, constants);
}

backend::Launch attention_merge_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<AttentionMergeConstants>();
  return {.rows = c.rows, .rows_per_block = 1, .tiles_per_block = c.heads};
}

}  // namespace refrain::ops
