// add_bias: one vector added to each row, as linear layers with a bias do.
#pragma once

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

struct AddBias {
  Operand input;
  Operand bias;
  Operand output;
};

/// Adds a vector to each row.
///
/// output[r, n] = input[r, n] + bias[n]
///
/// `input`: f32 [R, N]. `bias`: Weight [N], layout vector_f32. `output`: f32 [R, N]; only its live rows are written.
/// Aliasing: `output` may be `input` itself; it may not overlap it otherwise.
/// Errors: InvalidArgument where dtypes or shapes differ.
/// Accuracy: correctly rounded.
void add_bias(CommandEncoder& encoder, const AddBias& args);

using AddBiasConstants = ElementwiseConstants;

/// Calls each(first element, its column, count) for the parts of rows that `range` is made of.
template <class Each>
void each_row_part(size_t columns, const ElementRange& range, const Each& each) {
  size_t column = range.first % columns, done = 0;
  while (done < range.count) {
    const size_t count = std::min(columns - column, range.count - done);
    each(range.first + done, column, count);
    done += count;
    column = 0;
  }
}

extern const backend::OpSchema add_bias_schema;

}  // namespace refrain::ops
