// Rotary position embedding: each head's pairs of elements are rotated by an angle that grows with the
// position. Frequencies are an argument, so every scaling of them is the caller's.
#pragma once

#include <cmath>
#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/core/host_device.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct Rope {
  Operand input;
  Operand rows;
  Operand frequencies;
  Operand output;
  bool interleaved = false;  ///< pairs (2i, 2i + 1); otherwise (i, i + d / 2)
  float scale = 1;           ///< of what is rotated, as some scalings of frequencies have it
  float growth = 0;          ///< of the scale with the position, if not 0
  uint32_t period = 0;       ///< positions, in steps of which it grows
};

/// Rotates the pairs of every head by the angle of the row's position.
///
/// With angle = position * frequencies[i], computed in float32, and a pair (x, y) of the first d = 2 F
/// elements:
///   x' = x c - y s,  y' = y c + x s,  c = m cos(angle), s = m sin(angle),
///   m = scale (1 + growth ln(1 + floor(position / period))), rounded to float32; without growth m = scale.
/// Elements from d on are copied.
///
/// input: f32 [R, H, D], rows. rows: u32 [R, 4], the rows of the step block; only `position` is read.
/// frequencies: Weight [F] with 2 F <= D, layout vector_f32. output: f32 [R, H, D], rows.
/// Aliasing: `output` may be `input` itself.
/// Errors: InvalidArgument for shapes that do not fit, for a scale or growth that is not finite,
/// and for growth without a period. Any position is valid.
/// Accuracy: 2^-22 (|x| + |y|) for the given angle; with a scale other than 1 or growth, 1.5 * 2^-22 |m| (|x| + |y|).
/// Source: Su et al., "RoFormer", 2021; the two pairings are those of GPT-NeoX (default) and GPT-J
/// (interleaved).
void rope(CommandEncoder& encoder, const Rope& args);

struct RopeConstants {
  uint32_t rows = 0;
  uint32_t heads = 0;
  uint32_t head_dim = 0;
  uint32_t pairs = 0;        ///< F
  uint32_t interleaved = 0;  ///< 0 or 1
  float scale = 1;
  float growth = 0;
  uint32_t period = 0;

  /// What cosines and sines of a position are multiplied by.
  REFRAIN_HD float scale_at(uint32_t position) const {
    if (growth == 0) return scale;
    const double steps = position / period;
    return static_cast<float>(static_cast<double>(scale) *
                              (1 + static_cast<double>(growth) * std::log(1 + steps)));
  }
};

extern const backend::OpSchema rope_schema;
/// One tile a block of rows; scratch for the cosines and sines of a row.
backend::Launch rope_launch(const backend::OpCall& call, const backend::DeviceInfo& info);
/// TileKernel::rows_prologue of every kernel: of each row F cosines, then F sines.
void rope_angles(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end);
/// TileKernel::tiles of a kernel with this region.
void rope_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end,
                void (*region)(const backend::TileArgs&, uint32_t, uint32_t, uint32_t, uint32_t));
void rope_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
