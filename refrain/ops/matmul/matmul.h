// matmul: rows of activations times a weight matrix of any format, as a linear layer has it. Not a batched product.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct Matmul {
  Operand input;
  Operand weight;
  Operand output;
};

/// Multiplies rows by the transpose of a weight matrix.
///
/// output[r, n] = sum over k of input[r, k] * weight[n, k]
///
/// `input`: f32 [R, K]. `weight`: Weight [N, K] of any format, packed for Use::matvec or Use::matmul; its elements are
/// what the format decodes to. `output`: f32 [R, N]; only its live rows are written. Aliasing: `output` overlaps no other
/// argument. Errors: InvalidArgument where shapes, dtypes or the weight's layout do not fit.
/// Accuracy: error of an output below (K / 8 + 6) * 2^-24 * sum over k of |input * weight|; where scales are f32, more by
/// 2^-24 * sum over k of |input| * (2 * |weight| + |scale * code|).
void matmul(CommandEncoder& encoder, const Matmul& args);

struct MatmulConstants {
  uint32_t rows = 0;
  uint32_t outputs = 0;
  uint32_t columns = 0;
  const WeightFormat* format = nullptr;

  backend::WeightInfo weight() const { return {format, Shape{outputs, columns}}; }
};

extern const backend::OpSchema matmul_schema;

}  // namespace refrain::ops
