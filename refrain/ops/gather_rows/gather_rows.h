// Collects wanted rows of a matrix, such as those whose logits are needed.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct GatherRows {
  Operand input;
  Operand index;
  Operand input_rows;
  Operand status;
  Operand output;
};

/// Copies the rows of `input` that `index` names: output[o, :] = input[index[o], :].
///
/// input: f32 [R, K], every row readable. index: u32 [O], rows. input_rows: u32 [1], how many rows of `input`
/// are live. status: u32 [S + 1], of which only the last word is used. output: f32 [O, K], rows. Aliasing:
/// none. Errors: InvalidArgument for shapes that do not fit. kIdle gives zeros; any other
/// index that is not below `input_rows` (or R) gives zeros and raises kOutputOutOfRange.
/// Accuracy: exact.
void gather_rows(CommandEncoder& encoder, const GatherRows& args);

struct GatherRowsConstants {
  uint32_t input_rows = 0;   ///< R
  uint32_t output_rows = 0;  ///< O
  uint32_t columns = 0;
  uint32_t status_word = 0;  ///< S
};

extern const backend::OpSchema gather_rows_schema;
void gather_rows_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
