// The merge of attention's parts, AVX2 kernel: the joins of `attention`.
#include "refrain/backend/features.h"
#include "refrain/ops/attention/attention_walk.h"
#include "refrain/ops/attention_merge/attention_merge.h"

namespace refrain::ops {
namespace {

constexpr backend::TileKernel kTiles = {
    .tiles = [](const backend::TileArgs& args, uint32_t begin,
                uint32_t end) { attention_merge_tiles(attention_cpu_avx2, args, begin, end); },
    .region =
        [](const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
           uint32_t unit_end) {
          if (unit_begin != unit_end) attention_merge_rows(attention_cpu_avx2, args, row_begin, row_end);
        }};

}  // namespace

std::span<const backend::Kernel> attention_merge_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_merge_f32_avx2",
      .op = &attention_merge_schema,
      .numerics = kAttentionAvx2Numerics,
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = attention_merge_launch,
      .entry = &kTiles,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
