// The parts of attention: schema, checks, recording, and the rewrite that makes two commands of one.
#include "refrain/ops/attention_part/attention_part.h"

#include <algorithm>
#include <string>

#include "refrain/backend/kernel.h"
#include "refrain/ops/attention_merge/attention_merge.h"
#include "refrain/ops/check.h"

namespace refrain::ops {
namespace {

enum : size_t { kQuery, kRows, kPageTable, kCache, kStatus, kSums, kWeighted };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "query", .access = backend::Access::in, .rows = true, .dtypes = {DType::f32}},
    {.name = "rows", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "page_table", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "cache", .access = backend::Access::in, .dtypes = kCacheTypes},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
    {.name = "sums", .access = backend::Access::out, .rows = true, .dtypes = {DType::f32}},
    {.name = "weighted", .access = backend::Access::out, .rows = true, .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  const auto& constants = call.constants_as<AttentionPartConstants>();
  const AttentionConstants& c = constants.attention;
  expect_attention(call, c);
  const Shape& query = call.args[kQuery].shape;
  expect_shape(call, kSums, {query[0], c.chunks(), query[1], 2});
  expect_shape(call, kWeighted, {query[0], c.chunks(), query[1], query[2]});
  if (constants.parts == 0 || constants.parts > c.chunks()) {
    fail(call, "parts", "1 to the " + std::to_string(c.chunks()) + " chunks of a row",
         std::to_string(constants.parts));
  }
}

backend::Cost cost(const backend::OpCall& call) {
  return attention_cost(call, call.constants_as<AttentionPartConstants>().attention);
}

// A context of fewer positions is not worth a second command.
constexpr uint32_t kLeastSplitPositions = 1024;
// Tiles that a worker should have to choose from, so that all end at about the same time.
constexpr uint32_t kTilesPerWorker = 2;

/// Into how many parts; 1: the call stays whole.
uint32_t parts_of(const AttentionConstants& c, const backend::RewriteTarget& target) {
  // Blocks of rows are tiles enough, and the partial results of so many rows would take much memory.
  if (attention_rows_per_block(c) != 1) return 1;
  if (target.splits != 0) return std::min(target.splits, c.chunks());
  const backend::DeviceInfo& info = target.info;
  uint64_t positions = uint64_t{c.pages_per_slot} * kPagePositions;
  if (c.window != 0) positions = std::min<uint64_t>(positions, c.window);
  if (!info.composes || positions < kLeastSplitPositions) return 1;
  const uint32_t tiles = c.rows * c.kv_heads, wanted = kTilesPerWorker * info.compute_units;
  if (tiles >= wanted || tiles % info.compute_units == 0) return 1;
  return std::min(ceil_div(wanted, tiles), c.chunks());
}

bool rewrite(const backend::OpCall& call, const backend::RewriteTarget& target,
             backend::Replacement& replacement) {
  const auto& c = call.constants_as<AttentionConstants>();
  const uint32_t parts = parts_of(c, target);
  if (parts <= 1) return false;
  const uint32_t sums = replacement.value(DType::f32, {c.rows, c.chunks(), c.heads, 2});
  const uint32_t weighted = replacement.value(DType::f32, {c.rows, c.chunks(), c.heads, c.head_dim});
  using backend::RewriteArgument;
  const auto of_call = RewriteArgument::of_call;
  const auto value = RewriteArgument::value;
  replacement.command(
      attention_part_schema,
      {of_call(0), of_call(1), of_call(2), of_call(3), of_call(4), value(sums), value(weighted)},
      AttentionPartConstants{c, parts});
  replacement.command(attention_merge_schema, {value(sums), value(weighted), of_call(1), of_call(5)},
                      AttentionMergeConstants{c.rows, c.heads, c.head_dim, c.chunks(), c.window});
  return true;
}

}  // namespace

constinit const backend::Rewrite split_attention = {
    .name = "split_attention", .op = &attention_schema, .rewrite = rewrite};

constinit const backend::OpSchema attention_part_schema = {
    .name = "attention_part",
    .args = kArgs,
    .constants_bytes = sizeof(AttentionPartConstants),
    .check = check,
    .cost = cost,
    .reference = attention_part_reference,
};

void attention_part(CommandEncoder& encoder, const AttentionPart& args) {
  const AttentionPartConstants constants = {
      attention_constants(args.query, args.page_table, args.cache, args.scale, args.window, args.softcap),
      args.parts};
  const Operand operands[] = {args.query,  args.rows, args.page_table, args.cache,
                              args.status, args.sums, args.weighted};
  dispatch(encoder, attention_part_schema, operands, constants);
}

backend::Launch attention_part_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& [c, parts] = call.constants_as<AttentionPartConstants>();
  return {
      .rows = c.rows, .rows_per_block = attention_rows_per_block(c), .tiles_per_block = parts * c.kv_heads};
}

}  // namespace refrain::ops
