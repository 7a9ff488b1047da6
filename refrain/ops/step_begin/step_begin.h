// Resolves the block that the host sent against the slots: the first command of a step.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct StepBegin {
  Operand block;
  Operand slots;
  Operand live;
  Operand rows;
  Operand segments;
  Operand outputs;
  Operand status;
  uint32_t context_tokens = 0xFFFFFFFF;  ///< positions that a slot may have at most
};

/// Resolves the requests of a block into rows, segments and outputs.
///
/// Request q, whose tokens are the next q.rows of the block, of slot s at position p = q.position, or s.length
/// for kAtLength:
///  - Its first token is kLastToken: it goes on from the slot. Nothing is computed when the slot has stopped;
///    rows at or past the least of s.limit and `context_tokens` are idle. The token is s.last_token.
///  - Otherwise its tokens are as given, whether the slot has stopped or not.
///  - Row i: {token, p + i, slot, kNoToken}. Segment: {slot, first row, rows that are not idle, q.state_from or,
///    for kSlotState, s.state_version}.
/// outputs[o] is the wanted row, kIdle when that is idle. `live` counts rows and outputs up to the last that is
/// not idle, and segments; what lies behind is idle.
///
/// block: u32 [B] with B >= 4 + 4 G + R + O, a packed StepHeader, requests, tokens and outputs. slots: u32 [S,
/// 16]. live: u32 [4], a StepHeader. rows: u32 [R, 4]. segments: u32 [G, 4]. outputs: u32 [O]. status: u32
/// [S + 1]. Aliasing: none. Errors: InvalidArgument for shapes that do not fit. Counts beyond R, G and O are cut.
/// A position past s.length, or rows past `context_tokens`, raise kPositionOutOfRange, a slot that is not below
/// S raises kSlotOutOfRange in the last word; the request's rows are then idle. A wanted row that was not sent
/// raises kOutputOutOfRange there. Accuracy: exact.
void step_begin(CommandEncoder& encoder, const StepBegin& args);

struct StepBeginConstants {
  uint32_t rows = 0;      ///< R
  uint32_t segments = 0;  ///< G
  uint32_t outputs = 0;   ///< O
  uint32_t slots = 0;     ///< S
  uint32_t context_tokens = 0;
};

extern const backend::OpSchema step_begin_schema;
void step_begin_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
