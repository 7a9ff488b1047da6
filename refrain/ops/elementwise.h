// How elementwise ops cut a matrix into tiles: runs of whole rows, or parts of one long row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/core/checked.h"

namespace refrain::ops {

/// Constants of an elementwise op: all dimensions after the first make one row.
struct ElementwiseConstants {
  uint32_t rows = 0;
  uint32_t columns = 0;
};

/// Elements of a tile: a few microseconds of work, small enough for the second-level cache.
inline constexpr uint32_t kElementsPerTile = 8192;

inline backend::Launch elementwise_launch(const ElementwiseConstants& constants) {
  backend::Launch launch;
  launch.rows = constants.rows;
  launch.rows_per_block = std::clamp(kElementsPerTile / constants.columns, 1u, constants.rows);
  launch.tiles_per_block = launch.rows_per_block > 1 ? 1 : ceil_div(constants.columns, kElementsPerTile);
  return launch;
}

/// Runs of elements, the same in every argument: each contiguous, one for each row.
struct ElementRange {
  size_t first = 0;  ///< of the first run
  size_t count = 0;  ///< of a run
  size_t rows = 1;
  size_t stride = 0;  ///< elements from run to run
};

/// The elements of `tile` that belong to live rows.
inline ElementRange element_range(const ElementwiseConstants& constants, uint32_t live_rows, uint32_t tile) {
  const backend::Launch launch = elementwise_launch(constants);
  const uint32_t row = tile / launch.tiles_per_block * launch.rows_per_block;
  const uint32_t row_count = std::min(launch.rows_per_block, live_rows - row);
  const uint32_t column = tile % launch.tiles_per_block * kElementsPerTile;
  const size_t first = size_t{row} * constants.columns + column;
  if (launch.tiles_per_block == 1) return {first, size_t{row_count} * constants.columns};
  return {first, std::min(constants.columns - column, kElementsPerTile)};
}

/// The tile function of a kernel whose `Run` computes runs of elements.
template <void (*Run)(const backend::TileArgs&, const ElementRange&)>
void elementwise_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<ElementwiseConstants>();
  for (uint32_t tile = begin; tile < end; ++tile) Run(args, element_range(c, args.live_rows, tile));
}

/// The region function of the same; its units are elements of a row.
template <void (*Run)(const backend::TileArgs&, const ElementRange&)>
void elementwise_region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end,
                        uint32_t unit_begin, uint32_t unit_end) {
  const size_t columns = args.constants_as<ElementwiseConstants>().columns;
  if (unit_begin == 0 && unit_end == columns) {
    Run(args, {row_begin * columns, (row_end - row_begin) * columns});
    return;
  }
  Run(args, {row_begin * columns + unit_begin, unit_end - unit_begin, row_end - row_begin, columns});
}

/// Both, as a kernel's entry.
template <void (*Run)(const backend::TileArgs&, const ElementRange&)>
inline constexpr backend::TileKernel kElementwiseEntry{nullptr, nullptr, elementwise_tiles<Run>,
                                                       elementwise_region<Run>};

}  // namespace refrain::ops
