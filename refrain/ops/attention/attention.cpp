// Attention: schema, checks and recording.
#include "refrain/ops/attention/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "refrain/ops/check.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

enum : size_t { kQuery, kRows, kPageTable, kCache, kStatus, kOutput };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "query", .access = backend::Access::in, .rows = true, .dtypes = {DType::f32}},
    {.name = "rows", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "page_table", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "cache", .access = backend::Access::in, .dtypes = kCacheTypes},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
    {.name = "output", .access = backend::Access::out, .rows = true, .dtypes = {DType::f32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_attention(call, call.constants_as<AttentionConstants>());
  expect_shape(call, kOutput, call.args[kQuery].shape);
}

backend::Cost cost(const backend::OpCall& call) {
  return attention_cost(call, call.constants_as<AttentionConstants>());
}

}  // namespace

constinit const backend::OpSchema attention_schema = {
    .name = "attention",
    .args = kArgs,
    .constants_bytes = sizeof(AttentionConstants),
    .check = check,
    .cost = cost,
    .reference = attention_reference,
};

void attention(CommandEncoder& encoder, const Attention& args) {
  const AttentionConstants constants =
      attention_constants(args.query, args.page_table, args.cache, args.scale, args.window, args.softcap);
  const Operand operands[] = {args.query, args.rows, args.page_table, args.cache, args.status, args.output};
  dispatch(encoder, attention_schema, operands, constants);
}

void expect_attention(const backend::OpCall& call, const AttentionConstants& constants) {
  expect_rank(call, kQuery, 3, 3, "[rows, heads, head_dim]");
  const Shape& query = call.args[kQuery].shape;
  expect_shape(call, kRows, {query[0], 4});
  expect_rank(call, kPageTable, 2, 2, "[slots, pages of a slot]");
  const Shape& table = call.args[kPageTable].shape;
  expect_rank(call, kCache, 5, 5, "[2, pages, kv_heads, 64, head_dim]");
  const Shape& cache = call.args[kCache].shape;
  expect_shape(call, kCache, {2, cache[1], cache[2], kPagePositions, query[2]});
  if (const DType type = call.args[kCache].dtype; type != constants.cache_type)
    fail(call, kCache, name(constants.cache_type), name(type));
  if (query[1] % cache[2] != 0) {
    fail(call, kQuery, "heads divisible by " + std::to_string(cache[2]) + " kv_heads", to_string(query));
  }
  expect_shape(call, kStatus, {table[0] + 1});
  if (!(constants.softcap >= 0) || std::isinf(constants.softcap))
    fail(call, "softcap", "a finite number above 0, or 0 for none", fmt::to_string(constants.softcap));
  expect_constant(call, "rows", static_cast<uint64_t>(query[0]), constants.rows);
  expect_constant(call, "heads", static_cast<uint64_t>(query[1]), constants.heads);
  expect_constant(call, "kv_heads", static_cast<uint64_t>(cache[2]), constants.kv_heads);
  expect_constant(call, "head_dim", static_cast<uint64_t>(query[2]), constants.head_dim);
  expect_constant(call, "slots", static_cast<uint64_t>(table[0]), constants.slots);
  expect_constant(call, "pages_per_slot", static_cast<uint64_t>(table[1]), constants.pages_per_slot);
  expect_constant(call, "pages", static_cast<uint64_t>(cache[1]), constants.pages);
}

AttentionConstants attention_constants(const Operand& query, const Operand& page_table, const Operand& cache,
                                       float scale, uint32_t window, float softcap) {
  return {.rows = dimension(query.shape(), 0),
          .heads = dimension(query.shape(), 1),
          .kv_heads = dimension(cache.shape(), 2),
          .head_dim = dimension(query.shape(), 2),
          .slots = dimension(page_table.shape(), 0),
          .pages_per_slot = dimension(page_table.shape(), 1),
          .pages = dimension(cache.shape(), 1),
          .scale = scale,
          .window = window,
          .cache_type = cache.dtype() == DType::f16 ? DType::f16 : DType::f32,
          .softcap = softcap};
}

backend::Cost attention_cost(const backend::OpCall& call, const AttentionConstants& c) {
  // How far the rows look back is not known; this takes all pages of a slot or the window for each.
  uint64_t positions = uint64_t{c.pages_per_slot} * kPagePositions;
  if (c.window != 0) positions = std::min<uint64_t>(positions, c.window);
  const uint64_t scores = uint64_t{c.rows} * c.heads * positions;
  backend::Cost result;
  for (const backend::ArgumentInfo& argument : call.args) result.bytes += argument_bytes(argument);
  result.flops = scores * (4 * uint64_t{c.head_dim} + (c.softcap != 0 ? 24 : 0));
  return result;
}

uint32_t attention_rows_per_block(const AttentionConstants& constants) {
  // Rows of a prompt read the same cache: eight of them make one pass over it, once there are enough tiles
  // anyway.
  return constants.rows >= 4 * kAttentionMaxBlockRows ? kAttentionMaxBlockRows : 1;
}

}  // namespace refrain::ops
