// MLX's affine quantization: codes of a few bits, and a scale and a bias for each group of a row.
// w = scale * code + bias. Element i of a row occupies bits [i * bits, (i + 1) * bits) of the row's bytes,
// least significant first. These are the plain algorithms; the fast products over such weights are kernels of
// ops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "refrain/core/dtype.h"

namespace refrain::format {

struct AffineParameters {
  uint32_t bits = 4;
  uint32_t group_size = 64;

  bool operator==(const AffineParameters&) const = default;
};

/// Whether MLX defines it: 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
constexpr bool is_legal(AffineParameters p) {
  return ((p.bits >= 2 && p.bits <= 6) || p.bits == 8) &&
         (p.group_size == 32 || p.group_size == 64 || p.group_size == 128);
}

/// Whether the kernels take it: 4 or 8 bits in groups of 32, 64 or 128.
constexpr bool is_supported(AffineParameters p) { return is_legal(p) && (p.bits == 4 || p.bits == 8); }

/// u32 words of the codes of `elements` elements, a multiple of the group size.
constexpr uint64_t affine_words(uint64_t elements, AffineParameters p) { return elements / 32 * p.bits; }

/// Quantizes whole groups as mlx.core.quantize does on the CPU, bit for bit.
///
/// In float32, for each group: s = max((max - min) / (2^bits - 1), 1e-7), negative unless |min| > |max|;
/// edge = the value of larger magnitude (max when equal); if rint(edge / s) != 0 then s = edge / rint(edge /
/// s) and bias = edge, else bias = 0; code = clamp(rint((w - bias) / s), 0, 2^bits - 1), from the unrounded s
/// and bias.
///
/// `values`: elements of `dtype` (f32, f16 or bf16), a multiple of the group size, at any address.
/// `codes`: affine_words(elements). `scales`, `biases`: elements / group_size of `dtype`, at any address.
/// Nothing may overlap. Returns false when a value is not finite; its group's codes are then unspecified.
/// Throws InvalidArgument for a dtype, parameters or sizes that do not fit.
/// Source: mlx 0.32.4, mlx/backend/cpu/quantized.cpp.
bool affine_quantize(DType dtype, std::span<const std::byte> values, AffineParameters parameters,
                     std::span<uint32_t> codes, std::span<std::byte> scales, std::span<std::byte> biases);

/// w = scale * code + bias, each operation rounded to float32.
///
/// `codes`: u32 words at any address. `scales`, `biases`: `dtype` (f32, f16 or bf16), at any address, cast to
/// float32 first. `values`: as many float32 as there are codes. Throws InvalidArgument as affine_quantize.
void affine_dequantize(DType dtype, std::span<const std::byte> codes, std::span<const std::byte> scales,
                       std::span<const std::byte> biases, AffineParameters parameters,
                       std::span<float> values);

}  // namespace refrain::format
