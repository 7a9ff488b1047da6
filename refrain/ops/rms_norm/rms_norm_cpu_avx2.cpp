// rms_norm: kernel for AVX2. Element i of a vector is summed in lane i % 32, four vectors of eight.
#include <algorithm>
#include <cmath>

#include "refrain/backend/features.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops {
namespace {

constexpr uint32_t kLanes = 32;

bool accepts(const backend::OpCall& call) {
  return !call.args[1].bound || call.args[1].layout == &vector_f32();
}

REFRAIN_AVX2 float sum_of_squares(const float* input, uint32_t columns) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  uint32_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    for (uint32_t part = 0; part < 4; ++part) {
      const __m256 x = avx2::load8(input + i + part * 8);
      sums[part] = _mm256_fmadd_ps(x, x, sums[part]);
    }
  }
  for (uint32_t part = 0; i < columns; i += 8, ++part) {
    const __m256 x = avx2::load_first(input + i, std::min(8u, columns - i));
    sums[part] = _mm256_fmadd_ps(x, x, sums[part]);
  }
  return avx2::horizontal_sum(
      _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

/// output = input * scale * weight; without a weight, input * scale.
REFRAIN_AVX2 void scale_vector(const float* input, float scale, const float* weight, float* output,
                               uint32_t columns) {
  const __m256 factor = _mm256_set1_ps(scale);
  uint32_t i = 0;
  for (; i + 8 <= columns; i += 8) {
    __m256 value = _mm256_mul_ps(avx2::load8(input + i), factor);
    if (weight != nullptr) value = _mm256_mul_ps(value, avx2::load8(weight + i));
    _mm256_storeu_ps(output + i, value);
  }
  for (; i < columns; ++i) output[i] = weight != nullptr ? input[i] * scale * weight[i] : input[i] * scale;
}

REFRAIN_AVX2 void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end,
                         uint32_t unit_begin, uint32_t unit_end) {
  const auto& c = args.constants_as<RmsNormConstants>();
  const float* weight = args.arg<float>(1);
  for (size_t row = row_begin; row < row_end; ++row) {
    for (size_t vector = row * c.vectors + unit_begin; vector < row * c.vectors + unit_end; ++vector) {
      const float* input = args.arg<float>(0) + vector * c.columns;
      float* output = args.arg<float>(2) + vector * c.columns;
      const float mean = sum_of_squares(input, c.columns) / static_cast<float>(c.columns);
      const float scale = 1.0f / std::sqrt(mean + c.eps);
      scale_vector(input, scale, weight, output, c.columns);
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

std::span<const backend::Kernel> rms_norm_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "rms_norm_f32_avx2",
      .op = &rms_norm_schema,
      .numerics = "exact, f32, avx2 fma, 32 lanes",
      .needs = backend::kFeatureAvx2,
      .accepts = accepts,
      .launch = rms_norm_launch,
      .entry = &kEntry,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
