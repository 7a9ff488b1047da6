// The layout of 4-bit weights for products on a GPU: units that a warp takes at once.
//
// A unit is 4 rows by 1,024 columns in four parts of 256 columns, one after another: of each row 128 bytes of codes, then for
// each two of the four groups of 64 columns and each row the scale and bias of either. Lane l of a warp has columns
// [32 l, 32 l + 32) of each row, a piece of 16 bytes: byte b of word k holds column 32 l + 4 k + b in its low half and column
// 32 l + 16 + 4 k + b in its high half, so that either half of a word meets four neighbouring activations. Piece p of a row r
// lies where p ^ 2 r would, so that no bank of shared memory is met twice where lanes read pieces of several rows. Units of a
// row tile follow each other by columns. What lies past the rows or columns is zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "refrain/backend/op.h"

namespace refrain::ops {

inline constexpr uint32_t kTileRows = 4, kTileColumns = 1024, kTileGroup = 64;
inline constexpr uint32_t kTileGroups = kTileColumns / kTileGroup, kTilePairs = kTileGroups / 2;
inline constexpr uint32_t kPartGroups = 4, kTileParts = kTileGroups / kPartGroups;
inline constexpr uint32_t kPartRowBytes = kPartGroups * kTileGroup / 2;
inline constexpr uint32_t kPartCodesBytes = kTileRows * kPartRowBytes;
inline constexpr uint32_t kPartBytes = kPartCodesBytes + kPartGroups * kTileRows * 4;
inline constexpr uint32_t kTileBytes = kTileParts * kPartBytes;
static_assert(kTileBytes == 2304 && kPartBytes % 16 == 0);

/// Where in a unit a row's piece of 16 bytes is.
constexpr uint32_t tile_piece_offset(uint32_t row, uint32_t piece) {
  constexpr uint32_t kPieces = kPartRowBytes / 16;
  return piece / kPieces * kPartBytes + row * kPartRowBytes + (piece % kPieces ^ row * 2) * 16;
}
/// Where in a unit the scale and the bias are of a row's group: bf16 both.
constexpr uint32_t tile_scale_offset(uint32_t row, uint32_t group) {
  return group / kPartGroups * kPartBytes + kPartCodesBytes +
         ((group % kPartGroups / 2 * kTileRows + row) * 2 + group % 2) * 4;
}

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
