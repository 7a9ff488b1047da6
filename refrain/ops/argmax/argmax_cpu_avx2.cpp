// Argmax, AVX2: the greatest value first, then where it first stands.
#include <algorithm>
#include <bit>
#include <limits>

#include "refrain/backend/features.h"
#include "refrain/ops/argmax/argmax.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops {
namespace {

using avx2::kLanes;

REFRAIN_AVX2 float greatest(const float* row, size_t columns) {
  constexpr size_t kStep = 4 * kLanes;
  const __m256 lowest = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  // max_ps gives its second operand when one of them is a NaN: the greatest so far.
  __m256 max[4] = {lowest, lowest, lowest, lowest};
  size_t i = 0;
  for (; i + kStep <= columns; i += kStep) {
    for (size_t j = 0; j < 4; ++j) max[j] = _mm256_max_ps(avx2::load8(row + i + j * kLanes), max[j]);
  }
  for (; i < columns; i += kLanes) {
    const size_t count = std::min(kLanes, columns - i);
    const __m256 values = _mm256_blendv_ps(lowest, avx2::load_first(row + i, count),
                                           _mm256_castsi256_ps(avx2::first_lanes(count)));
    max[0] = _mm256_max_ps(values, max[0]);
  }
  return avx2::horizontal_max(_mm256_max_ps(_mm256_max_ps(max[0], max[1]), _mm256_max_ps(max[2], max[3])));
}

REFRAIN_AVX2 uint32_t argmax_row(const float* row, size_t columns) {
  const float max = greatest(row, columns);
  const __m256 wanted = _mm256_set1_ps(max);
  for (size_t i = 0; i < columns; i += kLanes) {
    const size_t count = std::min(kLanes, columns - i);
    const __m256 equal = _mm256_cmp_ps(avx2::load_first(row + i, count), wanted, _CMP_EQ_OQ);
    const uint32_t bits = static_cast<uint32_t>(_mm256_movemask_ps(equal)) & ((1u << count) - 1);
    if (bits != 0) return static_cast<uint32_t>(i) + static_cast<uint32_t>(std::countr_zero(bits));
  }
  return 0;  // nothing but NaNs
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const uint32_t columns = args.constants_as<ArgmaxConstants>().columns;
  for (uint32_t r = begin; r < end; ++r) {
    args.arg<uint32_t>(1)[r] = argmax_row(args.arg<const float>(0) + size_t{r} * columns, columns);
  }
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> argmax_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "argmax_f32_avx2",
      .op = &argmax_schema,
      .numerics = "exact, comparisons",
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = argmax_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
