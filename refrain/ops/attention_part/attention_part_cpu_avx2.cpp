// The parts of attention, AVX2 kernel: the text of `attention`.
#include "refrain/backend/features.h"
#include "refrain/ops/attention/attention_walk.h"
#include "refrain/ops/attention_part/attention_part.h"

namespace refrain::ops {
namespace {

constexpr backend::TileKernel kTiles = {
    .tiles = [](const backend::TileArgs& args, uint32_t begin, uint32_t end) {
      attention_part_tiles(attention_cpu_avx2, args, begin, end);
    }};

}  // namespace

std::span<const backend::Kernel> attention_part_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_part_f32_avx2",
      .op = &attention_part_schema,
      .numerics = kAttentionAvx2Numerics,
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = attention_part_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
