// MLX's affine quantization: codes of a few bits, and a scale and a bias for each group of a row.
#pragma once

#include <cstdint>

#include "refrain/core/weight_format.h"

namespace refrain::format {

struct AffineParameters {
  uint32_t bits = 4;
  uint32_t group_size = 64;

  bool operator==(const AffineParameters&) const = default;
};

inline constexpr uint32_t kMaxGroupSize = 128;

/// Whether MLX defines it: 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
constexpr bool is_legal(AffineParameters p) {
  return ((p.bits >= 2 && p.bits <= 6) || p.bits == 8) &&
         (p.group_size == 32 || p.group_size == 64 || p.group_size == 128);
}

/// The format with scales and biases of `dtype` (f32, f16 or bf16). Named "mlx_affine4_g64_bf16".
///
/// Parts: codes, u32; scales; biases. A block is a group. w = scale * code + bias, each operation rounded to f32. Element
/// i of a row occupies bits [i * bits, (i + 1) * bits) of the row's bytes, least significant first.
///
/// encode() is mlx.core.quantize on the CPU, bit for bit. In f32, for each group: s = max((max - min) / (2^bits - 1),
/// 1e-7), negative unless |min| > |max|; edge = the value of larger magnitude (max when equal); if rint(edge / s) != 0
/// then s = edge / rint(edge / s) and bias = edge, else bias = 0; code = clamp(rint((w - bias) / s), 0, 2^bits - 1), from
/// the unrounded s and bias, which are then rounded to `dtype`.
///
/// Throws InvalidArgument for parameters or a dtype that MLX does not define.
/// Source: mlx 0.32.4, mlx/backend/cpu/quantized.cpp.
const WeightFormat& mlx_affine(AffineParameters parameters, DType dtype);

}  // namespace refrain::format
