// Cache write: schema, checks and recording.
#include "refrain/ops/kv_write/kv_write.h"

#include "refrain/ops/check.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

enum : size_t { kKey, kValue, kRows, kPageTable, kCache, kStatus };

constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "key", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "value", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "rows", .access = backend::Access::in, .rows = true, .dtypes = {DType::u32}},
    {.name = "page_table", .access = backend::Access::in, .dtypes = {DType::u32}},
    {.name = "cache", .access = backend::Access::inout, .dtypes = kCacheTypes},
    {.name = "status", .access = backend::Access::accumulate, .dtypes = {DType::u32}},
};

void check(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, kKey, 3, 3, "[rows, kv_heads, head_dim]");
  const Shape& key = call.args[kKey].shape;
  expect_shape(call, kValue, key);
  expect_shape(call, kRows, {key[0], 4});
  expect_rank(call, kPageTable, 2, 2, "[slots, pages of a slot]");
  const Shape& table = call.args[kPageTable].shape;
  expect_rank(call, kCache, 5, 5, "[2, pages, kv_heads, 64, head_dim]");
  const int64_t pages = call.args[kCache].shape[1];
  expect_shape(call, kCache, {2, pages, key[1], kPagePositions, key[2]});
  expect_shape(call, kStatus, {table[0] + 1});
}

void complete(const backend::OpCall& call, KvWriteConstants& c) {
  const Shape& key = call.args[kKey].shape;
  const Shape& table = call.args[kPageTable].shape;
  c = {.rows = dimension(key, 0),
       .kv_heads = dimension(key, 1),
       .head_dim = dimension(key, 2),
       .slots = dimension(table, 0),
       .pages_per_slot = dimension(table, 1),
       .pages = dimension(call.args[kCache].shape, 1),
       .cache_type = call.args[kCache].dtype};
}

backend::Cost cost(const backend::OpCall& call) {
  const uint64_t read = argument_bytes(call.args[kKey]) + argument_bytes(call.args[kValue]);
  return {.bytes = read + read / sizeof(float) * size_bytes(call.args[kCache].dtype), .flops = 0};
}

}  // namespace

constinit const backend::OpSchema kv_write_schema = {
    .name = "kv_write",
    .args = kArgs,
    .constants_bytes = sizeof(KvWriteConstants),
    .check = check,
    .complete = complete_as<KvWriteConstants, complete>,
    .cost = cost,
    .reference = kv_write_reference,
    .iteration = backend::Iteration::scatter,
    .units = [](const backend::OpCall& call) { return call.constants_as<KvWriteConstants>().kv_heads; },
};

void kv_write(CommandEncoder& encoder, const KvWrite& args) {
  const Operand operands[] = {args.key, args.value, args.rows, args.page_table, args.cache, args.status};
  dispatch(encoder, kv_write_schema, operands, KvWriteConstants{});
}

}  // namespace refrain::ops
