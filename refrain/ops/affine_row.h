// One row of an `mlx_affine_rows` weight as f32, portable: scale * code + bias, each operation rounded, which
// gives the bits of mlx.core.dequantize in float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "refrain/core/half.h"
#include "refrain/ops/layouts.h"

namespace refrain::ops {

/// What kernels are told of an affine weight.
struct AffineWeight {
  uint32_t rows = 0;
  uint32_t columns = 0;
  uint32_t bits = 0;
  uint32_t group_size = 0;
  uint32_t dtype = 0;  ///< DType of scales and biases

  AffinePlanes planes() const { return {rows, columns, bits, group_size, static_cast<DType>(dtype)}; }
};

/// Element `index` of floats of a dtype.
inline float float_at(const std::byte* from, uint32_t dtype, size_t index) {
  if (static_cast<DType>(dtype) == DType::f32) {
    float value;
    std::memcpy(&value, from + index * sizeof(value), sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from + index * sizeof(bits), sizeof(bits));
  return static_cast<DType>(dtype) == DType::f16 ? f16{bits}.to_float() : bf16{bits}.to_float();
}

/// Calls `each(column, code, scale, bias)` for the columns of a row, in order.
template <class Each>
void for_affine_row(const std::byte* packed, const AffineWeight& weight, size_t row, Each each) {
  const AffinePlanes planes = weight.planes();
  const std::byte* codes = packed + row * planes.codes_row_bytes;
  for (size_t group = 0; group < planes.groups; ++group) {
    const size_t pair = row * planes.groups + group;
    const float scale = float_at(packed + planes.scales_offset_bytes, weight.dtype, pair);
    const float bias = float_at(packed + planes.biases_offset_bytes, weight.dtype, pair);
    const size_t first = group * weight.group_size;
    if (weight.bits == 4) {
      for (size_t k = first; k < first + weight.group_size; k += 2) {
        const auto byte = std::to_integer<uint32_t>(codes[k / 2]);
        each(k, byte & 15u, scale, bias);
        each(k + 1, byte >> 4, scale, bias);
      }
    } else {
      for (size_t k = first; k < first + weight.group_size; ++k) {
        each(k, std::to_integer<uint32_t>(codes[k]), scale, bias);
      }
    }
  }
}

inline void widen_affine_row(const std::byte* packed, const AffineWeight& weight, size_t row, float* to) {
  for_affine_row(packed, weight, row, [to](size_t k, uint32_t code, float scale, float bias) {
    to[k] = scale * static_cast<float>(code) + bias;
  });
}

}  // namespace refrain::ops
