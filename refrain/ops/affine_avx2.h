// AVX2 access to `mlx_affine_rows` weights of one width and type of scale.
#pragma once

#include "refrain/ops/affine_row.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops::avx2 {

/// One value in all lanes.
REFRAIN_AVX2_INLINE __m256 broadcast(const float* from) { return _mm256_broadcast_ss(from); }
REFRAIN_AVX2_INLINE __m256 broadcast(const bf16* from) {
  const __m256i both_halves = _mm256_set1_epi16(static_cast<int16_t>(from->bits));
  return _mm256_castsi256_ps(_mm256_slli_epi32(both_halves, 16));
}
REFRAIN_AVX2_INLINE __m256 broadcast(const f16* from) {
  return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(from->bits)));
}

/// Codes k .. k + 7 of a row as f32; k is a multiple of 8.
template <uint32_t Bits>
REFRAIN_AVX2_INLINE __m256 load_codes(const std::byte* row, size_t k) {
  static_assert(Bits == 4 || Bits == 8);
  if constexpr (Bits == 4) {
    int32_t word;
    std::memcpy(&word, row + k / 2, sizeof(word));
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
  } else {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + k));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
  }
}

template <uint32_t Bits, class Scale>
struct AffineRows {
  const std::byte* codes;
  const Scale* scales;
  const Scale* biases;
  size_t codes_row_bytes;
  size_t groups;
  size_t columns;
  size_t group_size;

  AffineRows(const std::byte* packed, const AffineWeight& weight)
      : columns(weight.columns), group_size(weight.group_size) {
    const AffinePlanes planes = weight.planes();
    codes = packed;
    scales = reinterpret_cast<const Scale*>(packed + planes.scales_offset_bytes);
    biases = reinterpret_cast<const Scale*>(packed + planes.biases_offset_bytes);
    codes_row_bytes = planes.codes_row_bytes;
    groups = planes.groups;
  }

  /// y[r * y_stride + o] = x row r times weight row output + o; the weight is fma(scale, code, bias).
  /// Meanwhile brings in the codes of rows next + o.
  template <uint32_t RowCount, uint32_t Outputs>
  REFRAIN_AVX2 void block(const float* x, size_t output, size_t next, float* y, size_t y_stride) const {
    __m256 sums[RowCount][Outputs];
    for (uint32_t r = 0; r < RowCount; ++r) {
      for (uint32_t o = 0; o < Outputs; ++o) sums[r][o] = _mm256_setzero_ps();
    }
    const std::byte* row = codes + output * codes_row_bytes;
    const Scale* scale = scales + output * groups;
    const Scale* bias = biases + output * groups;
    for (size_t group = 0; group < groups; ++group) {
      __m256 scale8[Outputs], bias8[Outputs];
      for (uint32_t o = 0; o < Outputs; ++o) {
        scale8[o] = broadcast(scale + o * groups + group);
        bias8[o] = broadcast(bias + o * groups + group);
      }
      const size_t end = (group + 1) * group_size;
      for (uint32_t o = 0; o < Outputs; ++o) {
        // Rows are too short for the processor to foresee.
        const std::byte* ahead = codes + (next + o) * codes_row_bytes + group * group_size * Bits / 8;
        for (size_t byte = 0; byte < group_size * Bits / 8; byte += 64) prefetch(ahead + byte);
      }
      for (size_t k = group * group_size; k < end; k += kLanes) {
        __m256 weights[Outputs];
        for (uint32_t o = 0; o < Outputs; ++o) {
          weights[o] = _mm256_fmadd_ps(scale8[o], load_codes<Bits>(row + o * codes_row_bytes, k), bias8[o]);
        }
        for (uint32_t r = 0; r < RowCount; ++r) {
          const __m256 value = load8(x + r * columns + k);
          for (uint32_t o = 0; o < Outputs; ++o) sums[r][o] = _mm256_fmadd_ps(value, weights[o], sums[r][o]);
        }
      }
    }
    for (uint32_t r = 0; r < RowCount; ++r) {
      for (uint32_t o = 0; o < Outputs; ++o) y[r * y_stride + o] = horizontal_sum(sums[r][o]);
    }
  }

  /// One row with the weights that block() uses.
  REFRAIN_AVX2 void widen(size_t output, float* to) const {
    const std::byte* row = codes + output * codes_row_bytes;
    for (size_t group = 0; group < groups; ++group) {
      const __m256 scale8 = broadcast(scales + output * groups + group);
      const __m256 bias8 = broadcast(biases + output * groups + group);
      const size_t end = (group + 1) * group_size;
      for (size_t k = group * group_size; k < end; k += kLanes) {
        _mm256_storeu_ps(to + k, _mm256_fmadd_ps(scale8, load_codes<Bits>(row, k), bias8));
      }
    }
  }

  /// One row with each operation rounded, as widen_affine_row() does.
  REFRAIN_AVX2 void widen_rounded(size_t output, float* to) const {
    const std::byte* row = codes + output * codes_row_bytes;
    for (size_t group = 0; group < groups; ++group) {
      const __m256 scale8 = broadcast(scales + output * groups + group);
      const __m256 bias8 = broadcast(biases + output * groups + group);
      const size_t end = (group + 1) * group_size;
      for (size_t k = group * group_size; k < end; k += kLanes) {
        _mm256_storeu_ps(to + k, _mm256_add_ps(_mm256_mul_ps(scale8, load_codes<Bits>(row, k)), bias8));
      }
    }
  }
};

}  // namespace refrain::ops::avx2
