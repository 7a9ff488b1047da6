// silu_mul: the gated activation of a feed-forward layer, silu(gate) times up, element by element.
#pragma once

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

struct SiluMul {
  Operand gate;
  Operand up;
  Operand output;
};

/// Multiplies by a sigmoid-weighted gate.
///
/// output[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
///
/// `gate`, `up`: f32 [R, ...], row-major. `output`: the same shape and dtype; only its live rows are written.
/// Aliasing: `output` may be `gate` or `up` itself; it may not overlap them otherwise.
/// Errors: InvalidArgument where dtypes or shapes differ.
/// Accuracy: relative error below 6e-7 (exp 2e-7, four roundings); gates below -88 may give 0.
/// Source: N. Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
void silu_mul(CommandEncoder& encoder, const SiluMul& args);

using SiluMulConstants = ElementwiseConstants;

extern const backend::OpSchema silu_mul_schema;

}  // namespace refrain::ops
