// Draws one token a row from its logits.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct Sample {
  Operand logits;
  Operand index;
  Operand step_rows;
  Operand slots;
  Operand masks;  ///< optional
  Operand status;
};

/// Draws a token for each row of logits by its slot's temperature T, top_k, top_p and seed.
///
/// With r = index[o], the row of the step block, and l = logits[o]; sums and exponentials are in double:
///  1. Candidates are the ids that the slot's mask admits and whose logit is neither NaN nor minus infinity. m is
///     their greatest logit. If T is not above 0 (or NaN), or m is infinite, or there is no candidate, the token is
///     the greatest admitted logit that is no NaN, the lower id of equals; failing that the least admitted
///     id; failing that 0. Nothing is drawn.
///  2. top_k is on when 0 < top_k < the number of candidates: the top_k greatest logits stay, lower ids
///     first among equals.
///  3. w_i = e^((l_i - m) / T), 0 below e^-700. W is the sum of w_i over the candidates.
///  4. top_p is on when it is below 1: of the candidates in descending order of logit, lower ids first among
///     equals, the shortest beginning whose sum is >= top_p W stays, at least one. W becomes that sum.
///  5. u = x 2^-32, x the first word of Philox4x32-10 with key = seed (low word, high word) and counter =
///     (position of row r, 0, 0, 0). The token is the first candidate at which the running sum exceeds u W.
/// Sums run in descending order of logit, lower ids first among equals, when top_k or top_p is on; otherwise,
/// and for the W of step 3 when top_k is off, in order of id.
///
/// logits: f32 [O, V], rows. index: u32 [O], rows. step_rows: u32 [R, 4], all readable; `sampled` of row
/// index[o] is written. slots: u32 [S, 16]. masks: u32 [M, ceil(V / 32)], bit i % 32 of word i / 32 of row
/// Slot::mask admits id i; a slot of mask kNoTable admits all. status: u32 [S + 1]. Aliasing: none. Errors:
/// InvalidArgument for shapes that do not fit. An index of kIdle and an idle row draw nothing. Any other index
/// that is not below R raises kOutputOutOfRange in the last word and writes nothing; a slot out of range raises
/// kSlotOutOfRange there, a mask out of range kTableOutOfRange in its slot's word, and both give kNoToken; a
/// token whose logit is not finite raises kNotFinite. Accuracy: e^x within 2 units in the last place of a double, by sums and
/// products alone, so that all CPU kernels draw the same tokens. Source: Fan et al. 2018 (top-k), Holtzman et
/// al. 2019 (top-p), Salmon et al. 2011 (Philox).
void sample(CommandEncoder& encoder, const Sample& args);

struct SampleConstants {
  uint32_t rows = 0;  ///< O
  uint32_t vocabulary = 0;
  uint32_t step_rows = 0;  ///< R
  uint32_t slots = 0;      ///< S
  uint32_t masks = 0;      ///< M
};

extern const backend::OpSchema sample_schema;
/// One tile a row; scratch of eight bytes an id.
backend::Launch sample_launch(const backend::OpCall& call, const backend::DeviceInfo& info);
void sample_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
