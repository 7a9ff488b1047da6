// The portable kernel of matmul and quantized_matmul: each weight row is widened to f32 once for all rows of
// a tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/ops/matmul_tiles.h"

namespace refrain::ops::portable {

/// Element k is summed in lane k % 16, lanes in halves.
inline float dot(const float* a, const float* b, size_t count) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes] = {};
  size_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  }
  for (size_t lane = 0; k + lane < count; ++lane) lanes[lane] += a[k + lane] * b[k + lane];
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

/// `Constants` has rows, outputs, columns; `weights.widen(output, to)` writes one weight row as f32. Scratch:
/// one row.
template <class Constants, class Weights>
void matmul_region(const backend::TileArgs& args, const Weights& weights, const MatmulTile& t) {
  const auto& c = args.constants_as<Constants>();
  auto* weight_row = reinterpret_cast<float*>(args.scratch);
  for (size_t output = t.output; output < size_t{t.output} + t.outputs; ++output) {
    weights.widen(output, weight_row);
    for (size_t row = t.row; row < size_t{t.row} + t.rows; ++row) {
      args.template arg<float>(2)[row * c.outputs + output] =
          dot(args.template arg<const float>(0) + row * c.columns, weight_row, c.columns);
    }
  }
}

}  // namespace refrain::ops::portable
