// softcap: keeps values within a cap by a hyperbolic tangent, as some models do with scores and logits.
#pragma once

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

struct Softcap {
  Operand input;
  Operand output;
  float cap = 0;
};

/// Bends values smoothly into (-cap, cap), the small ones hardly.
///
/// output[i] = cap * tanh(input[i] / cap)
///
/// `input`: f32 [R, ...], row-major. `output`: the same shape and dtype; only its live rows are written.
/// Aliasing: `output` may be `input` itself; it may not overlap it otherwise.
/// Errors: InvalidArgument where dtypes or shapes differ, or `cap` is not finite or not above 0.
/// Accuracy: relative error below 8 * 2^-24, where input / cap is a normal number; infinities give cap, NaN gives NaN.
/// Source: Gemma Team, Gemma 2, arXiv:2408.00118.
void softcap(CommandEncoder& encoder, const Softcap& args);

struct SoftcapConstants {
  ElementwiseConstants size = {};
  float cap = 0;
};

extern const backend::OpSchema softcap_schema;

}  // namespace refrain::ops
