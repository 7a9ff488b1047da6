// quantized_matmul: rows of activations times a weight matrix in MLX's affine format. The weight alone is
// quantized.
#pragma once

#include <cstdint>
#include <span>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/affine_row.h"

namespace refrain::ops {

struct QuantizedMatmul {
  Operand input;
  Operand weight;
  Operand output;
};

/// Multiplies rows by the transpose of a quantized weight matrix.
///
/// output[r, n] = sum over k of input[r, k] * (scale[n, k / g] * code[n, k] + bias[n, k / g])
///
/// `input`: f32 [R, K]. `weight`: Weight [N, K] in MLX's affine format, codes of 4 or 8 bits in groups of g =
/// 32, 64 or 128, scales and biases of bf16, f16 or f32, packed for Use::matvec or Use::matmul. `output`: f32
/// [R, N]; only its live rows are written. Aliasing: `output` overlaps no other argument. Errors:
/// InvalidArgument where shapes, dtypes or the weight's format do not fit. Accuracy: error of an output below
/// 2^-24 * sum over k of |input| * ((K / 8 + 7) * |weight| + |scale * code|). Source:
/// mlx.core.quantized_matmul (ml-explore/mlx); all arithmetic in f32.
void quantized_matmul(CommandEncoder& encoder, const QuantizedMatmul& args);

struct QuantizedMatmulConstants {
  uint32_t rows = 0;
  uint32_t outputs = 0;
  uint32_t columns = 0;
  uint32_t bits = 0;
  uint32_t group_size = 0;
  uint32_t dtype = 0;  ///< DType of scales and biases

  AffineWeight weight() const { return {outputs, columns, bits, group_size, dtype}; }
};

extern const backend::OpSchema quantized_matmul_schema;
std::span<const backend::Kernel> quantized_matmul_cpu_kernels();
std::span<const backend::Kernel> quantized_matmul_cpu_avx2_kernels();

}  // namespace refrain::ops
