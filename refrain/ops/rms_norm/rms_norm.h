// rms_norm: root-mean-square normalisation of vectors, with an optional weight. Not a layer norm: no mean is
// taken off.
#pragma once

#include <algorithm>
#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct RmsNorm {
  Operand input;
  Operand weight;  ///< none: ones
  Operand output;
  float eps = 1e-6f;
};

/// Scales each vector to a root mean square of one, then by a weight.
///
/// output[i] = input[i] / sqrt(mean(input^2) + eps) * weight[i]
///
/// `input`: f32 [R, K], or [R, H, K] for H vectors a row (heads). `weight`: Weight [K] packed for
/// Use::vector, optional. `output`: f32 of the input's shape; only its live rows are written. Aliasing:
/// `output` may be `input` itself; it may not overlap it otherwise. Errors: InvalidArgument where shapes or
/// dtypes do not fit, or eps is negative or not finite. Accuracy: relative error below (K / 32 + 12) * 2^-24.
/// Source: B. Zhang, R. Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467.
void rms_norm(CommandEncoder& encoder, const RmsNorm& args);

struct RmsNormConstants {
  uint32_t rows = 0;
  uint32_t vectors = 0;  ///< of one row
  uint32_t columns = 0;
  float eps = 0;
};

/// Whole rows a tile: about 8192 elements, a microsecond or two.
constexpr uint32_t rms_norm_rows_per_tile(const RmsNormConstants& c) {
  const uint64_t row_elements = uint64_t{c.vectors} * c.columns;
  return static_cast<uint32_t>(std::clamp<uint64_t>(8192 / row_elements, 1, c.rows));
}

inline backend::Launch rms_norm_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<RmsNormConstants>();
  return {
      .rows = c.rows, .rows_per_block = rms_norm_rows_per_tile(c), .tiles_per_block = 1, .scratch_bytes = 0};
}

extern const backend::OpSchema rms_norm_schema;

}  // namespace refrain::ops
