// The layout of 4-bit weights for products on a GPU: units that a warp takes at once.
//
// A unit is 4 rows by 1,024 columns: 512 bytes of codes a row, then a scale and a bias of each row for each of the 16 groups
// of 64 columns. Lane l of a warp has columns [32 l, 32 l + 32) of each row, 16 bytes: byte b of word k holds column
// 32 l + 4 k + b in its low half and column 32 l + 16 + 4 k + b in its high half, so that either half of a word meets four
// neighbouring activations. Units of a row tile follow each other by columns. What lies past the rows or columns is zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "refrain/backend/op.h"

namespace refrain::ops {

inline constexpr uint32_t kTileRows = 4, kTileColumns = 1024, kTileGroup = 64;
inline constexpr uint32_t kTileGroups = kTileColumns / kTileGroup;
inline constexpr uint32_t kTileRowBytes = kTileColumns / 2;
inline constexpr uint32_t kTileCodesBytes = kTileRows * kTileRowBytes;
inline constexpr uint32_t kTileBytes = kTileCodesBytes + kTileGroups * kTileRows * 4;
static_assert(kTileBytes == 2304 && kTileBytes % 16 == 0);

/// Of a row: what fits into the shared memory of a block beside the units on their way.
inline constexpr uint32_t kMostTileChunks = 32;

constexpr uint32_t tiles_of(uint32_t rows) { return (rows + kTileRows - 1) / kTileRows; }
constexpr uint32_t tile_chunks(uint32_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }

/// `tiles_4x1024`: an MLX affine matrix of 4 bits in groups of 64 with scales in bf16. Serves matvec, matmul and gather in
/// the mode `fast`.
const backend::WeightLayout& tiles_4x1024();

/// Every layout of the library, for plugins that name what their kernels read.
std::span<const backend::WeightLayout> all_layouts();

}  // namespace refrain::ops
