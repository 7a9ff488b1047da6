// Rope, AVX2: eight pairs at a time. The products are rounded before they are subtracted, as in the portable
// kernel, so both give the same bits.
#include <algorithm>

#include "refrain/backend/features.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops {
namespace {

using avx2::kLanes;

REFRAIN_AVX2_INLINE void rotate_pairs(__m256 cosine, __m256 sine, __m256& x, __m256& y) {
  const __m256 rotated = _mm256_sub_ps(_mm256_mul_ps(x, cosine), _mm256_mul_ps(y, sine));
  y = _mm256_add_ps(_mm256_mul_ps(y, cosine), _mm256_mul_ps(x, sine));
  x = rotated;
}

REFRAIN_AVX2_INLINE void rotate_halves(size_t pairs, const float* cosines, const float* sines,
                                       const float* input, float* output) {
  for (size_t i = 0; i < pairs; i += kLanes) {
    const size_t count = std::min(kLanes, pairs - i);
    __m256 x = avx2::load_first(input + i, count);
    __m256 y = avx2::load_first(input + pairs + i, count);
    rotate_pairs(avx2::load_first(cosines + i, count), avx2::load_first(sines + i, count), x, y);
    avx2::store_first(output + i, x, count);
    avx2::store_first(output + pairs + i, y, count);
  }
}

/// Four pairs a vector: x cos -+ y sin, with each cosine and sine doubled and the neighbours exchanged.
REFRAIN_AVX2_INLINE void rotate_neighbours(size_t pairs, const float* cosines, const float* sines,
                                           const float* input, float* output) {
  const __m256i doubled = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  for (size_t i = 0; i < pairs; i += 4) {
    const size_t count = std::min<size_t>(4, pairs - i);
    const __m256 cosine = _mm256_permutevar8x32_ps(avx2::load_first(cosines + i, count), doubled);
    const __m256 sine = _mm256_permutevar8x32_ps(avx2::load_first(sines + i, count), doubled);
    const __m256 xy = avx2::load_first(input + 2 * i, 2 * count);
    const __m256 yx = _mm256_permute_ps(xy, 0xB1);
    const __m256 rotated = _mm256_addsub_ps(_mm256_mul_ps(xy, cosine), _mm256_mul_ps(yx, sine));
    avx2::store_first(output + 2 * i, rotated, 2 * count);
  }
}

REFRAIN_AVX2 void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end,
                         uint32_t unit_begin, uint32_t unit_end) {
  const auto& c = args.constants_as<RopeConstants>();
  const float* input = args.arg<const float>(0);
  float* output = args.arg<float>(3);
  for (size_t r = row_begin; r < row_end; ++r) {
    const float* cosines = reinterpret_cast<const float*>(args.scratch) + (r - row_begin) * 2 * c.pairs;
    const float* sines = cosines + c.pairs;
    for (size_t h = unit_begin; h < unit_end; ++h) {
      const size_t offset = (r * c.heads + h) * c.head_dim;
      if (c.interleaved != 0) {
        rotate_neighbours(c.pairs, cosines, sines, input + offset, output + offset);
      } else {
        rotate_halves(c.pairs, cosines, sines, input + offset, output + offset);
      }
      for (size_t i = size_t{2} * c.pairs; i < c.head_dim; ++i) output[offset + i] = input[offset + i];
    }
  }
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  rope_tiles(args, begin, end, region);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles, .region = region, .rows_prologue = rope_angles};

}  // namespace

std::span<const backend::Kernel> rope_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "rope_f32_avx2",
      .op = &rope_schema,
      .numerics = "exact, f32",
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = rope_launch,
      .entry = &kTiles,
      .regions = true,
      .keeps_rows = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
