// Gathering of rows, portable kernel: one copy a row.
#include <algorithm>
#include <cstring>

#include "refrain/ops/elementwise.h"
#include "refrain/ops/gather_rows/gather_rows.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

uint32_t rows_per_block(const GatherRowsConstants& c) { return rows_of_block(c.columns, c.output_rows); }

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<GatherRowsConstants>();
  const float* input = args.arg<const float>(0);
  const uint32_t* index = args.arg<const uint32_t>(1);
  const uint32_t input_rows = std::min(*args.arg<const uint32_t>(2), c.input_rows);
  float* output = args.arg<float>(4);
  const uint32_t block = rows_per_block(c);
  const size_t last = std::min<size_t>(size_t{end} * block, args.live_rows);
  for (size_t o = size_t{begin} * block; o < last; ++o) {
    float* to = output + o * c.columns;
    const size_t row = index[o];
    if (row < input_rows) {
      std::memcpy(to, input + row * c.columns, c.columns * sizeof(float));
    } else {
      std::fill_n(to, c.columns, 0.0f);
      if (row != kIdle) raise_status(args.arg<uint32_t>(3), c.status_word, kOutputOutOfRange);
    }
  }
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<GatherRowsConstants>();
  return {.rows = c.output_rows, .rows_per_block = rows_per_block(c)};
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> gather_rows_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "gather_rows_f32",
      .op = &gather_rows_schema,
      .numerics = "exact, copy",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
