// Sampling, the same source compiled for AVX2.
#include "refrain/backend/features.h"
#include "refrain/ops/sample/draw.h"
#include "refrain/ops/sample/sample.h"

namespace refrain::ops {
namespace {

__attribute__((target("avx2"))) void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  sampling::sample_tiles(args, begin, end);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> sample_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "sample_f32_avx2",
      .op = &sample_schema,
      .numerics = "exact, f64 without FMA",
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = sample_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
