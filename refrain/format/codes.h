// Codes of a few bits with a scale, and perhaps a bias, a group: what the formats and layouts of such codes share.
// Code i of a row occupies bits [i * bits, (i + 1) * bits) of its bytes, least significant first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "refrain/core/half.h"
#include "refrain/core/weight_format.h"

namespace refrain::format {

/// Whether with_codes() knows the format's bits, scales and biases.
constexpr bool has_codes(const WeightFormat& f) {
  if (!f.has_biases) return f.dtype == DType::f16 && (f.bits == 4 || f.bits == 8);
  return ((f.bits >= 2 && f.bits <= 6) || f.bits == 8) &&
         (f.dtype == DType::bf16 || f.dtype == DType::f16 || f.dtype == DType::f32);
}

template <class Scale, class Visitor>
constexpr auto with_bits(uint32_t bits, const Visitor& visitor) {
  switch (bits) {
    case 2:
      return visitor.template operator()<2, Scale, true>();
    case 3:
      return visitor.template operator()<3, Scale, true>();
    case 4:
      return visitor.template operator()<4, Scale, true>();
    case 5:
      return visitor.template operator()<5, Scale, true>();
    case 6:
      return visitor.template operator()<6, Scale, true>();
    default:
      return visitor.template operator()<8, Scale, true>();
  }
}

/// visitor.operator()<Bits, Scale, HasBiases>() for a format of which has_codes() is true.
template <class Visitor>
constexpr auto with_codes(const WeightFormat& f, const Visitor& visitor) {
  if (!f.has_biases) {
    return f.bits == 4 ? visitor.template operator()<4, f16, false>()
                       : visitor.template operator()<8, f16, false>();
  }
  if (f.dtype == DType::bf16) return with_bits<bf16>(f.bits, visitor);
  return f.dtype == DType::f16 ? with_bits<f16>(f.bits, visitor) : with_bits<float>(f.bits, visitor);
}

/// Where the groups of a row, or of part of one, lie.
struct CodedGroups {
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  const std::byte* biases = nullptr;
};

/// The values of `groups` groups, each operation rounded to f32.
void decode_groups(const WeightFormat& format, const CodedGroups& from, size_t groups, float* values);

}  // namespace refrain::format
