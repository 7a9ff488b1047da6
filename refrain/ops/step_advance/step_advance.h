// Moves the step block on by one token: the last command of a decode program.
#pragma once

#include <cstdint>
#include <span>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct StepAdvance {
  Operand rows;
  Operand sequences;
  Operand tokens;  ///< optional
};

/// Makes the sampled token of each row the next one to be computed.
///
/// For each live row, in order: token = sampled, position += 1, length of its sequence = position + 1.
///
/// rows: u32 [R, 4], rows, read and written. sequences: u32 [S, 8], read and written. tokens: u32 [R], rows,
/// optional: the sampled tokens once more, to memory that the host reaches, say.
/// Aliasing: none. Errors: InvalidArgument for shapes that do not fit. Position and length stop at 2^32 - 1;
/// a row whose sequence is out of range changes no sequence.
void step_advance(CommandEncoder& encoder, const StepAdvance& args);

struct StepAdvanceConstants {
  uint32_t rows = 0;
  uint32_t sequences = 0;  ///< S
};

extern const backend::OpSchema step_advance_schema;
void step_advance_reference(const backend::TileArgs& args);
std::span<const backend::Kernel> step_advance_cpu_kernels();

}  // namespace refrain::ops
