// How products of rows with a weight matrix are cut into tiles; the same for every kernel of matmul. Tiles do not decide
// any order of summation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/core/checked.h"
#include "refrain/ops/matmul/matmul.h"

namespace refrain::ops {

/// Rows that share one pass over the weights: 64 rows of f32 activations fit into a second-level cache.
inline constexpr uint32_t kMatmulRows = 64;

/// Outputs of a tile are multiples of this, the least that every kernel's block of outputs divides.
inline constexpr uint32_t kMatmulOutputs = 12;

/// Outputs of a tile: 65536 weights for one row (some 10 us where weights stream from memory), fewer where
/// more rows give each weight more to do.
constexpr uint32_t matmul_outputs_per_tile(uint32_t rows, uint32_t outputs, uint32_t columns) {
  const uint64_t work = uint64_t{columns} * ceil_div(std::min(rows, kMatmulRows), 16u);
  const uint64_t wanted = ceil_div<uint64_t>(65536 / work + 1, kMatmulOutputs) * kMatmulOutputs;
  return static_cast<uint32_t>(
      std::min<uint64_t>(wanted, ceil_div<uint64_t>(outputs, kMatmulOutputs) * kMatmulOutputs));
}

inline backend::Launch matmul_launch(const MatmulConstants& c, size_t scratch_bytes) {
  backend::Launch launch;
  launch.rows = c.rows;
  launch.rows_per_block = std::min(c.rows, kMatmulRows);
  launch.tiles_per_block = ceil_div(c.outputs, matmul_outputs_per_tile(c.rows, c.outputs, c.columns));
  launch.scratch_bytes = align_up(scratch_bytes, 64);
  return launch;
}

/// What one tile computes: live rows [row, row + rows) times weight rows [output, output + outputs).
struct MatmulTile {
  uint32_t row = 0;
  uint32_t rows = 0;
  uint32_t output = 0;
  uint32_t outputs = 0;
};

inline MatmulTile matmul_tile(const MatmulConstants& c, uint32_t live_rows, uint32_t tile) {
  const uint32_t per_tile = matmul_outputs_per_tile(c.rows, c.outputs, c.columns);
  const uint32_t tiles_per_block = ceil_div(c.outputs, per_tile);
  const uint32_t row = tile / tiles_per_block * std::min(c.rows, kMatmulRows);
  const uint32_t output = tile % tiles_per_block * per_tile;
  return {row, std::min(kMatmulRows, live_rows - row), output, std::min(per_tile, c.outputs - output)};
}

/// The tile function of a kernel whose `Region` computes one MatmulTile.
template <void (*Region)(const backend::TileArgs&, const MatmulTile&)>
void matmul_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<MatmulConstants>();
  for (uint32_t tile = begin; tile < end; ++tile) Region(args, matmul_tile(c, args.live_rows, tile));
}

/// The region function of the same; its units are outputs.
template <void (*Region)(const backend::TileArgs&, const MatmulTile&)>
void matmul_region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
                   uint32_t unit_end) {
  Region(args, {row_begin, row_end - row_begin, unit_begin, unit_end - unit_begin});
}

/// Both, as a kernel's entry.
template <void (*Region)(const backend::TileArgs&, const MatmulTile&)>
inline constexpr backend::TileKernel kMatmulEntry{nullptr, nullptr, matmul_tiles<Region>,
                                                  matmul_region<Region>};

}  // namespace refrain::ops
