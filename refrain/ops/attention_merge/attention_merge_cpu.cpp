// The merge of attention's parts, portable kernel: the joins of `attention`.
#include "refrain/ops/attention/attention_walk.h"
#include "refrain/ops/attention_merge/attention_merge.h"

namespace refrain::ops {
namespace {

/// A tile is a query head of a row.
void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const uint32_t heads = args.constants_as<AttentionMergeConstants>().heads;
  for (uint32_t tile = begin; tile < end; ++tile)
    attention_merge_heads(attention_cpu, args, tile / heads, tile % heads, tile % heads + 1);
}

void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
            uint32_t unit_end) {
  if (unit_begin == unit_end) return;
  const uint32_t heads = args.constants_as<AttentionMergeConstants>().heads;
  for (size_t row = row_begin; row < row_end; ++row)
    attention_merge_heads(attention_cpu, args, row, 0, heads);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles, .region = region};

}  // namespace

std::span<const backend::Kernel> attention_merge_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_merge_f32",
      .op = &attention_merge_schema,
      .numerics = kAttentionNumerics,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = attention_merge_launch,
      .entry = &kTiles,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
