// Small AVX2 helpers that kernels share: loads that widen, sums in a fixed order, exp. For files
// *_cpu_avx2.cpp only.
//
// Each function carries the target attribute, so that the file that includes this needs no compiler flag.
// Lambdas do not inherit it: write functions.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "refrain/core/half.h"

/// For functions that use AVX2, FMA or F16C.
#define REFRAIN_AVX2 __attribute__((target("avx2,fma,f16c")))
/// For helpers that must not become calls.
#define REFRAIN_AVX2_INLINE __attribute__((target("avx2,fma,f16c"), always_inline)) inline

namespace refrain::ops::avx2 {

inline constexpr size_t kLanes = 8;

/// Eight elements as f32, from any address.
REFRAIN_AVX2_INLINE __m256 load8(const float* from) { return _mm256_loadu_ps(from); }
REFRAIN_AVX2_INLINE __m256 load8(const bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
REFRAIN_AVX2_INLINE __m256 load8(const f16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

/// Lanes below `count` are all ones; count in 0..8.
REFRAIN_AVX2_INLINE __m256i first_lanes(size_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

/// The first `count` (0..8) elements as f32, zeros after them; nothing past them is read.
REFRAIN_AVX2_INLINE __m256 load_first(const float* from, size_t count) {
  return _mm256_maskload_ps(from, first_lanes(count));
}
REFRAIN_AVX2_INLINE __m256 load_first(const bf16* from, size_t count) {
  alignas(16) bf16 copy[kLanes] = {};
  std::memcpy(copy, from, count * sizeof(bf16));
  return load8(copy);
}
REFRAIN_AVX2_INLINE __m256 load_first(const f16* from, size_t count) {
  alignas(16) f16 copy[kLanes] = {};
  std::memcpy(copy, from, count * sizeof(f16));
  return load8(copy);
}

/// Writes the first `count` (0..8) lanes and nothing past them.
REFRAIN_AVX2_INLINE void store_first(float* to, __m256 value, size_t count) {
  _mm256_maskstore_ps(to, first_lanes(count), value);
}

/// Asks for a cache line, which may lie anywhere: no fault. For streams of short rows, since the processor's
/// own prefetching begins anew with each page.
REFRAIN_AVX2_INLINE void prefetch(const void* line) {
  _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
}

/// ((0+4)+(2+6)) + ((1+5)+(3+7)): always this order.
REFRAIN_AVX2_INLINE float horizontal_sum(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// The greatest lane; a NaN lane gives an unspecified result.
REFRAIN_AVX2_INLINE float horizontal_max(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/// e^x: relative error below 2e-7, exact 0 and infinity at the ends, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, so that r is good to the last bit), e^r by its
/// series up to r^7 / 7! (the rest is below r^8 / 8! < 6e-9), 2^n as a product of two powers so that neither
/// overflows.
REFRAIN_AVX2_INLINE __m256 exp(__m256 x) {
  // Below -104 the result rounds to 0, above 89 it is infinite. A NaN passes through as the second operand.
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-104.0f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

}  // namespace refrain::ops::avx2
