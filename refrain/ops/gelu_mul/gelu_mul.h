// gelu_mul: the gated activation of a feed-forward layer, gelu(gate) times up, element by element. Gelu by tanh
// ("gelu_pytorch_tanh"), not by the error function.
#pragma once

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

struct GeluMul {
  Operand gate;
  Operand up;
  Operand output;
};

/// Multiplies by a gate weighted with the normal distribution, as tanh approximates it.
///
/// With u = sqrt(2 / pi) (gate[i] + 0.044715 gate[i]^3):
///   output[i] = gate[i] (1 + tanh(u)) / 2 * up[i] = gate[i] / (1 + exp(-2 u)) * up[i]
///
/// `gate`, `up`: f32 [R, ...], row-major. `output`: the same shape and dtype; only its live rows are written.
/// Aliasing: `output` may be `gate` or `up` itself; it may not overlap them otherwise.
/// Errors: InvalidArgument where dtypes or shapes differ.
/// Accuracy: relative error below 6e-7 + 2^-21 |2 u| (exp 2e-7, four roundings; 2 u five); may give
/// 0 where 2 u is below -88, at gates below -10.
/// Source: D. Hendrycks, K. Gimpel, Gaussian Error Linear Units, arXiv:1606.08415; N. Shazeer, GLU Variants
/// Improve Transformer, arXiv:2002.05202.
void gelu_mul(CommandEncoder& encoder, const GeluMul& args);

/// 2 u = kGeluLinear gate + kGeluCubic gate^3.
inline constexpr double kGeluLinear = 1.5957691216057308;  // 2 sqrt(2 / pi)
inline constexpr double kGeluCubic = kGeluLinear * 0.044715;

using GeluMulConstants = ElementwiseConstants;

extern const backend::OpSchema gelu_mul_schema;

}  // namespace refrain::ops
