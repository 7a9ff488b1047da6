// The two 16-bit floating-point types as bit patterns, with exact widening and rounding to nearest even.
#pragma once

#include <bit>
#include <cstdint>

#include "refrain/core/dtype.h"

namespace refrain {

/// bfloat16: the upper half of an IEEE binary32.
struct bf16 {
  uint16_t bits = 0;

  /// Rounds to nearest, ties to even; a NaN stays a quiet NaN.
  static constexpr bf16 from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
    return {static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
  }
  constexpr float to_float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

/// IEEE binary16.
struct f16 {
  static constexpr float kGreatest = 65504.0f;  ///< finite
  uint16_t bits = 0;

  /// Rounds to nearest, ties to even; overflow gives infinity, a NaN stays a quiet NaN.
  static constexpr f16 from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u)
      return {static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu))};
    if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // >= 2^16: infinity
    if (magnitude < 0x38800000u) {  // below the least normal 2^-14: a multiple of 2^-24
      // Adding 0.5 puts the unit in the last place of the sum at 2^-24, so the addition rounds as needed.
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000u))};
    }
    // The exponent bias changes by 112; a carry out of the mantissa correctly becomes the next exponent.
    const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
    return {static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
  }
  /// The same, but greater magnitudes become kGreatest, infinities too.
  static constexpr f16 saturated(float value) {
    return from_float(value > kGreatest ? kGreatest : value < -kGreatest ? -kGreatest : value);
  }
  constexpr float to_float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1Fu;
    const uint32_t mantissa = bits & 0x3FFu;
    if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
};

template <>
struct DTypeOf<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};

}  // namespace refrain
