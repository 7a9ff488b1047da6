// add: the sum of two tensors, element by element. No broadcasting.
#pragma once

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

struct Add {
  Operand a;
  Operand b;
  Operand output;
};

/// Adds two tensors.
///
/// output[i] = a[i] + b[i]
///
/// `a`, `b`: f32 [R, ...], row-major. `output`: the same shape and dtype; only its live rows are written.
/// Aliasing: `output` may be `a` or `b` itself; it may not overlap them otherwise.
/// Errors: InvalidArgument where dtypes or shapes differ.
/// Accuracy: correctly rounded.
void add(CommandEncoder& encoder, const Add& args);

using AddConstants = ElementwiseConstants;

extern const backend::OpSchema add_schema;

}  // namespace refrain::ops
