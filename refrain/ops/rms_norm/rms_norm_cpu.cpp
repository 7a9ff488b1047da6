// rms_norm: portable kernel. Element i of a vector is summed in lane i % 32, lanes in halves.
#include <algorithm>
#include <cmath>

#include "refrain/ops/layouts.h"
#include "refrain/ops/rms_norm/rms_norm.h"

namespace refrain::ops {
namespace {

constexpr uint32_t kLanes = 32;

bool accepts(const backend::OpCall& call) {
  return !call.args[1].bound || call.args[1].layout == &vector_f32();
}

float sum_of_squares(const float* input, uint32_t columns) {
  float lanes[kLanes] = {};
  uint32_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) lanes[lane] += input[i + lane] * input[i + lane];
  }
  for (uint32_t lane = 0; i + lane < columns; ++lane) lanes[lane] += input[i + lane] * input[i + lane];
  for (uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (uint32_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
            uint32_t unit_end) {
  const auto& c = args.constants_as<RmsNormConstants>();
  const float* weight = args.arg<float>(1);
  for (size_t row = row_begin; row < row_end; ++row) {
    for (size_t vector = row * c.vectors + unit_begin; vector < row * c.vectors + unit_end; ++vector) {
      const float* input = args.arg<float>(0) + vector * c.columns;
      float* output = args.arg<float>(2) + vector * c.columns;
      const float mean = sum_of_squares(input, c.columns) / static_cast<float>(c.columns);
      const float scale = 1.0f / std::sqrt(mean + c.eps);
      if (weight == nullptr) {
        for (uint32_t i = 0; i < c.columns; ++i) output[i] = input[i] * scale;
      } else {
        for (uint32_t i = 0; i < c.columns; ++i) output[i] = input[i] * scale * weight[i];
      }
    }
  }
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<RmsNormConstants>();
  const uint32_t rows_per_tile = rms_norm_rows_per_tile(c);
  region(args, begin * rows_per_tile, std::min(end * rows_per_tile, args.live_rows), 0, c.vectors);
}

constexpr backend::TileKernel kEntry{nullptr, nullptr, tiles, region};

}  // namespace

std::span<const backend::Kernel> rms_norm_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "rms_norm_f32_portable",
      .op = &rms_norm_schema,
      .numerics = "exact, f32, 32 lanes",
      .accepts = accepts,
      .launch = rms_norm_launch,
      .entry = &kEntry,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
