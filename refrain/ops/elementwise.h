// How ops cut a matrix into tiles: blocks of rows, and those of elementwise ops, which may be parts of one long row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/core/checked.h"

namespace refrain::ops {

/// What the constants of an elementwise op are or begin with: all dimensions after the first make one row.
struct ElementwiseConstants {
  uint32_t rows = 0;
  uint32_t columns = 0;
};

/// Of ops that move whole rows, rows of a block: about 2^15 elements, some 10 us.
inline uint32_t rows_of_block(uint64_t row_elements, uint32_t rows) {
  return static_cast<uint32_t>(std::clamp<uint64_t>(32768 / row_elements, 1, rows));
}

/// Elements of a tile: a few microseconds of work, small enough for the second-level cache.
inline constexpr uint32_t kElementsPerTile = 8192;

inline backend::Launch elementwise_launch(const ElementwiseConstants& constants) {
  backend::Launch launch;
  launch.rows = constants.rows;
  launch.rows_per_block = std::clamp(kElementsPerTile / constants.columns, 1u, constants.rows);
  launch.tiles_per_block = launch.rows_per_block > 1 ? 1 : ceil_div(constants.columns, kElementsPerTile);
  return launch;
}

/// Elements, the same of every argument.
struct ElementRange {
  size_t first = 0;
  size_t count = 0;
};

/// Computes the elements of a range.
using ElementFunction = void (*)(const backend::TileArgs&, const ElementRange&);

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

/// The tile function of a kernel.
template <ElementFunction Run>
void elementwise_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<ElementwiseConstants>();
  for (uint32_t tile = begin; tile < end; ++tile) Run(args, element_range(c, args.live_rows, tile));
}

/// The region function of the same; its units are elements of a row.
template <ElementFunction Run>
void elementwise_region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end,
                        uint32_t unit_begin, uint32_t unit_end) {
  const size_t columns = args.constants_as<ElementwiseConstants>().columns;
  if (unit_begin == 0 && unit_end == columns) {
    Run(args, {row_begin * columns, (row_end - row_begin) * columns});
    return;
  }
  for (size_t row = row_begin; row < row_end; ++row)
    Run(args, {row * columns + unit_begin, unit_end - unit_begin});
}

/// Both, as a kernel's entry.
template <ElementFunction Run>
inline constexpr backend::TileKernel kElementwiseEntry{nullptr, nullptr, elementwise_tiles<Run>,
                                                       elementwise_region<Run>};

/// A kernel by its `Run`, for every call that the op's schema admits; the rest is said in `row`.
template <ElementFunction Run>
constexpr backend::Kernel elementwise_kernel(backend::Kernel row) {
  row.accepts = [](const backend::OpCall&) { return true; };
  row.launch = [](const backend::OpCall& call, const backend::DeviceInfo&) {
    return elementwise_launch(call.constants_as<ElementwiseConstants>());
  };
  row.entry = &kElementwiseEntry<Run>;
  row.regions = true;
  return row;
}

}  // namespace refrain::ops
