// Sampling, portable kernel.
#include "refrain/ops/sample/draw.h"
#include "refrain/ops/sample/sample.h"

namespace refrain::ops {
namespace {

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  sampling::sample_tiles(args, begin, end);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> sample_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "sample_f32",
      .op = &sample_schema,
      .numerics = "exact, f64 without FMA",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = sample_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
