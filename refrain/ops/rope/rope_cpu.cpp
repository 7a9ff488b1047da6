// Rope, portable kernel.
#include "refrain/ops/rope/rope.h"

namespace refrain::ops {
namespace {

void rotate_head(const RopeConstants& c, const float* cosines, const float* sines, const float* input,
                 float* output) {
  const size_t stride = c.interleaved != 0 ? 2 : 1;
  const size_t partner = c.interleaved != 0 ? 1 : c.pairs;
  for (size_t i = 0; i < c.pairs; ++i) {
    const float x = input[i * stride];
    const float y = input[i * stride + partner];
    output[i * stride] = x * cosines[i] - y * sines[i];
    output[i * stride + partner] = y * cosines[i] + x * sines[i];
  }
  for (size_t i = size_t{2} * c.pairs; i < c.head_dim; ++i) output[i] = input[i];
}

void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
            uint32_t unit_end) {
  const auto& c = args.constants_as<RopeConstants>();
  const float* input = args.arg<const float>(0);
  float* output = args.arg<float>(3);
  for (size_t r = row_begin; r < row_end; ++r) {
    const float* cosines = reinterpret_cast<const float*>(args.scratch) + (r - row_begin) * 2 * c.pairs;
    const float* sines = cosines + c.pairs;
    for (size_t h = unit_begin; h < unit_end; ++h) {
      const size_t offset = (r * c.heads + h) * c.head_dim;
      rotate_head(c, cosines, sines, input + offset, output + offset);
    }
  }
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  rope_tiles(args, begin, end, region);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles, .region = region, .rows_prologue = rope_angles};

}  // namespace

std::span<const backend::Kernel> rope_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "rope_f32",
      .op = &rope_schema,
      .numerics = "exact, f32",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = rope_launch,
      .entry = &kTiles,
      .regions = true,
      .keeps_rows = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
