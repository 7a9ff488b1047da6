// The index of the greatest value of each row.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct Argmax {
  Operand input;
  Operand output;
};

/// Finds the greatest value of each row: output[r] = the least i with input[r, i] = max over j of input[r,
/// j].
///
/// input: f32 [R, V], rows. output: u32 [R], rows.
/// NaNs are never the greatest; a row of nothing but NaNs gives 0. Zeros of either sign are equal.
/// Aliasing: none. Errors: InvalidArgument for shapes that do not fit.
/// Accuracy: exact.
void argmax(CommandEncoder& encoder, const Argmax& args);

struct ArgmaxConstants {
  uint32_t rows = 0;
  uint32_t columns = 0;
};

extern const backend::OpSchema argmax_schema;
/// One tile a row.
backend::Launch argmax_launch(const backend::OpCall& call, const backend::DeviceInfo& info);
void argmax_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
