// rms_norm: portable kernel. Element i of a vector is summed in lane i % 32, lanes in halves.
#include <algorithm>
#include <cmath>

#include "refrain/ops/layouts.h"
#include "refrain/ops/rms_norm/rms_norm.h"

namespace refrain::ops {
namespace {

constexpr uint32_t kLanes = 32;

bool accepts(const device::OpCall& call) {
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

void tiles(const device::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<RmsNormConstants>();
  const size_t rows_per_tile = rms_norm_rows_per_tile(c);
  const float* weight = args.arg<float>(1);
  const size_t first = begin * rows_per_tile * c.vectors;
  const size_t last = std::min<size_t>(end * rows_per_tile, args.live_rows) * c.vectors;
  for (size_t vector = first; vector < last; ++vector) {
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

constexpr device::TileKernel kEntry{nullptr, nullptr, tiles};

}  // namespace

std::span<const device::Kernel> rms_norm_cpu_kernels() {
  static constexpr device::Kernel kKernels[] = {{
      .name = "rms_norm_f32_portable",
      .op = &rms_norm_schema,
      .numerics = "exact, f32, 32 lanes",
      .accepts = accepts,
      .launch = rms_norm_launch,
      .entry = &kEntry,
  }};
  return kKernels;
}

}  // namespace refrain::ops
