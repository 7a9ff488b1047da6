// Decoders for AVX2: how eight elements of a weight row become f32 in a register, one decoder a layout. Products and
// gathers are written over them, and know no format.
//
// A decoder has a Row (where a row lies), a Group (what elements k to k + step() of it share, in registers), eight(),
// which widens eight elements, and rest(), the fewer than eight behind them.
#pragma once

#include "refrain/format/codes.h"
#include "refrain/ops/layouts.h"
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

/// `rows`, and panels of f32: elements of T.
template <class T>
struct PlainDecoder {
  struct Row {
    const T* elements;
  };
  struct Group {};
  static constexpr bool kRagged = true;  ///< rows may have a rest

  const T* data;
  size_t stride;  ///< elements from row to row

  PlainDecoder(const std::byte* packed, const WeightFormat&, size_t columns)
      : data(reinterpret_cast<const T*>(packed)), stride(columns) {}
  PlainDecoder(const T* elements, size_t row_stride) : data(elements), stride(row_stride) {}

  size_t step() const { return 64 / sizeof(T); }
  Row row(size_t index) const { return {data + index * stride}; }
  REFRAIN_AVX2_INLINE Group group(const Row&, size_t) const { return {}; }
  REFRAIN_AVX2_INLINE __m256 eight(const Row& row, const Group&, size_t k) const {
    return load8(row.elements + k);
  }
  REFRAIN_AVX2_INLINE __m256 rest(const Row& row, size_t k, size_t count) const {
    return load_first(row.elements + k, count);
  }
  /// Asks for elements k to k + step().
  REFRAIN_AVX2_INLINE void ask(const Row& row, size_t k) const { prefetch(row.elements + k); }
};

/// For a shuffle: a lane of the byte that holds bit `bit`, the byte behind it and zeros.
constexpr int32_t two_bytes(uint32_t bit) {
  return static_cast<int32_t>(bit / 8 | (bit / 8 + 1) << 8 | 0x80800000u);
}

/// Codes k to k + 7 of a row as f32; k is a multiple of 8. Without biases they are in two's complement.
template <uint32_t Bits, bool Signed>
REFRAIN_AVX2_INLINE __m256 load_codes(const std::byte* codes, size_t k) {
  const std::byte* from = codes + k / 8 * Bits;
  if constexpr (Bits == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(Signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
  } else {
    // Each lane gets bytes that hold its code, from bit `shift` on.
    __m256i lanes, shift;
    if constexpr (Bits <= 4) {
      uint32_t word = 0;
      std::memcpy(&word, from, Bits == 2 ? 2 : 4);
      lanes = _mm256_set1_epi32(static_cast<int32_t>(word));
      shift = _mm256_setr_epi32(0, Bits, 2 * Bits, 3 * Bits, 4 * Bits, 5 * Bits, 6 * Bits, 7 * Bits);
    } else {
      int64_t word;
      std::memcpy(&word, from, sizeof(word));
      lanes =
          _mm256_shuffle_epi8(_mm256_set1_epi64x(word),
                              _mm256_setr_epi32(two_bytes(0 * Bits), two_bytes(1 * Bits), two_bytes(2 * Bits),
                                                two_bytes(3 * Bits), two_bytes(4 * Bits), two_bytes(5 * Bits),
                                                two_bytes(6 * Bits), two_bytes(7 * Bits)));
      shift = _mm256_setr_epi32(0, Bits % 8, 2 * Bits % 8, 3 * Bits % 8, 4 * Bits % 8, 5 * Bits % 8,
                                6 * Bits % 8, 7 * Bits % 8);
    }
    if constexpr (Signed) {
      const __m256i up = _mm256_sub_epi32(_mm256_set1_epi32(32 - Bits), shift);
      return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sllv_epi32(lanes, up), 32 - Bits));
    } else {
      return _mm256_cvtepi32_ps(
          _mm256_and_si256(_mm256_srlv_epi32(lanes, shift), _mm256_set1_epi32((1 << Bits) - 1)));
    }
  }
}

/// `grouped`. Fused: the product and the sum are rounded once, as products have it, else each, as the format says; it
/// makes a difference only where scales are f32.
template <uint32_t Bits, class Scale, bool HasBiases, bool Fused>
struct CodedDecoder {
  struct Row {
    const std::byte* codes;
    const Scale* scales;
    const Scale* biases;
  };
  struct Group {
    __m256 scale, bias;
  };
  static constexpr bool kRagged = false;

  const std::byte* data;
  CodedRow layout;
  size_t group_elements;

  CodedDecoder(const std::byte* packed, const WeightFormat& format, size_t columns)
      : data(packed), layout(format, columns), group_elements(format.block_elements) {}

  size_t step() const { return group_elements; }
  Row row(size_t index) const {
    const std::byte* at = data + index * layout.bytes;
    return {at, reinterpret_cast<const Scale*>(at + layout.scales_offset_bytes),
            reinterpret_cast<const Scale*>(at + layout.biases_offset_bytes)};
  }
  REFRAIN_AVX2_INLINE Group group(const Row& row, size_t index) const {
    if constexpr (HasBiases) return {broadcast(row.scales + index), broadcast(row.biases + index)};
    return {broadcast(row.scales + index), _mm256_setzero_ps()};
  }
  REFRAIN_AVX2_INLINE __m256 eight(const Row& row, const Group& group, size_t k) const {
    const __m256 code = load_codes<Bits, !HasBiases>(row.codes, k);
    if constexpr (!HasBiases) return _mm256_mul_ps(group.scale, code);
    if constexpr (Fused) return _mm256_fmadd_ps(group.scale, code, group.bias);
    return _mm256_add_ps(_mm256_mul_ps(group.scale, code), group.bias);
  }
  /// Asks for the codes of elements k to k + step(). Rows are too short for the processor to foresee.
  REFRAIN_AVX2_INLINE void ask(const Row& row, size_t k) const {
    const std::byte* at = row.codes + k * Bits / 8;
    for (size_t byte = 0; byte < group_elements * Bits / 8; byte += 64) prefetch(at + byte);
  }
};

/// Row `index` of a weight as f32.
template <class Decoder>
REFRAIN_AVX2 void widen(const Decoder& weights, size_t index, size_t columns, float* to) {
  const typename Decoder::Row row = weights.row(index);
  const size_t step = weights.step();
  size_t k = 0;
  for (size_t group = 0; k + step <= columns; ++group) {
    const typename Decoder::Group shared = weights.group(row, group);
    for (const size_t end = k + step; k < end; k += kLanes)
      _mm256_storeu_ps(to + k, weights.eight(row, shared, k));
  }
  if constexpr (Decoder::kRagged) {
    for (; k + kLanes <= columns; k += kLanes) _mm256_storeu_ps(to + k, weights.eight(row, {}, k));
    store_first(to + k, weights.rest(row, k, columns - k), columns - k);
  }
}

/// Do::run(decoder, arguments...) with the decoder of a weight in the layout that its format has.
template <class Do, bool Fused, class... Arguments>
void with_decoder(const std::byte* packed, const WeightFormat& format, size_t columns,
                  const Arguments&... arguments) {
  const auto run = [&]<class Decoder>() { Do::run(Decoder(packed, format, columns), arguments...); };
  if (format.bits != 0) {
    format::with_codes(format, [&]<uint32_t Bits, class Scale, bool HasBiases>() {
      run.template operator()<CodedDecoder<Bits, Scale, HasBiases, Fused>>();
    });
  } else if (format.dtype == DType::bf16) {
    run.template operator()<PlainDecoder<bf16>>();
  } else if (format.dtype == DType::f16) {
    run.template operator()<PlainDecoder<f16>>();
  } else {
    run.template operator()<PlainDecoder<float>>();
  }
}

}  // namespace refrain::ops::avx2
