// Moves the slots on by what a step has computed, and tells the host: the last command of a step.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct StepAdvance {
  Operand segments;
  Operand rows;
  Operand stop_sets;  ///< optional
  Operand slots;
  Operand status;
  Operand ring;
  uint32_t context_tokens = 0xFFFFFFFF;  ///< as in step_begin
};

/// Moves the slot of each segment to behind its last row, and appends what came of it to the ring.
///
/// Of a segment with rows: length = position of its last row + 1, last_token = what was sampled there, stopped =
/// the StopBits that hold: kStopId when the token is in the slot's stop set, kStopLimit when length has reached the
/// least of the slot's limit and `context_tokens`, kStopError when its status word is not 0. A segment without rows
/// changes its slot only when there is status. Where a token was sampled or status is raised, the result {slot,
/// token, length, bits} is appended; with status, its token and last_token are kNoToken. The last status word gives
/// a result of slot kIdle. Status words that were told become 0. At last `appended` and `steps` of the ring grow, in
/// release order, so that a host may read the ring while the next step runs.
///
/// segments: u32 [G, 4], idle ones skipped. rows: u32 [R, 4]. stop_sets: u32 [T, 16], ids or kNoToken. slots: u32
/// [S, 16], read and written. status: u32 [S + 1], read and written. ring: u32 [4 + 4 N], a RingHeader and N entries, N
/// a power of two. Aliasing: none. Errors: InvalidArgument for shapes that do not fit. A segment whose slot or
/// rows are out of range is skipped; a stop set out of range is kTableOutOfRange of the slot. Length stops at
/// 2^32 - 1. Accuracy: exact.
void step_advance(CommandEncoder& encoder, const StepAdvance& args);

struct StepAdvanceConstants {
  uint32_t segments = 0;   ///< G
  uint32_t rows = 0;       ///< R
  uint32_t stop_sets = 0;  ///< T
  uint32_t slots = 0;      ///< S
  uint32_t entries = 0;    ///< N
  uint32_t context_tokens = 0;
};

extern const backend::OpSchema step_advance_schema;
void step_advance_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
