// Argmax, portable kernel.
#include "refrain/ops/argmax/argmax.h"

namespace refrain::ops {
namespace {

uint32_t argmax_row(const float* row, uint32_t columns) {
  uint32_t best = 0;
  for (uint32_t i = 1; i < columns; ++i) {
    // The second comparison is true of a NaN in the lead alone.
    if (row[i] > row[best] || (row[best] != row[best] && row[i] == row[i])) best = i;
  }
  return best;
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const uint32_t columns = args.constants_as<ArgmaxConstants>().columns;
  for (uint32_t r = begin; r < end; ++r) {
    args.arg<uint32_t>(1)[r] = argmax_row(args.arg<const float>(0) + size_t{r} * columns, columns);
  }
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> argmax_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "argmax_f32",
      .op = &argmax_schema,
      .numerics = "exact, comparisons",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = argmax_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
