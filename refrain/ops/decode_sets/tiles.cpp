// tiles_4x1024: packing and unpacking.
#include "refrain/ops/decode_sets/tiles.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "refrain/backend/features.h"
#include "refrain/core/half.h"
#include "refrain/ops/layouts.h"

namespace refrain::ops {
namespace {

uint32_t rows_of(const backend::WeightInfo& weight) { return static_cast<uint32_t>(weight.shape[0]); }
uint32_t columns_of(const backend::WeightInfo& weight) { return static_cast<uint32_t>(weight.shape[1]); }

/// Where the code of a row's column `c` lies in its unit: the byte, and how far its bits are shifted.
struct Place {
  uint32_t byte, shift;
};
Place place_of(size_t row, uint32_t c) {
  const uint32_t within = c % 32;
  return {tile_piece_offset(static_cast<uint32_t>(row % kTileRows), c / 32) + within % 16, within / 16 * 4};
}

bool accepts(const backend::WeightInfo& weight, backend::Uses uses) {
  const WeightFormat& format = *weight.format;
  return format.bits == 4 && format.has_biases && format.dtype == DType::bf16 &&
         format.block_elements == kTileGroup && format.separate == nullptr && weight.shape.rank() == 2 &&
         tile_chunks(columns_of(weight)) <= kMostTileChunks &&
         uses.within({backend::Use::matvec, backend::Use::matmul, backend::Use::gather});
}

size_t packed_bytes(const backend::WeightInfo& weight) {
  return size_t{tiles_of(rows_of(weight))} * tile_chunks(columns_of(weight)) * kTileBytes;
}

void pack(const TensorSource& source, const backend::WeightInfo& weight, backend::RowRange rows,
          const backend::PackedBytes& packed) {
  const uint32_t columns = columns_of(weight), chunks = tile_chunks(columns);
  const size_t groups = columns / kTileGroup;
  const std::byte* codes = source.segments[0].bytes.data();
  const size_t tile_bytes = size_t{chunks} * kTileBytes;
  for (size_t first = rows.begin; first < rows.end; first += kTileRows) {
    const std::span<std::byte> tile = packed(first / kTileRows * tile_bytes, tile_bytes);
    std::memset(tile.data(), 0, tile.size());
    for (size_t row = first; row < std::min(first + kTileRows, rows.end); ++row) {
      for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        std::byte* unit = tile.data() + size_t{chunk} * kTileBytes;
        const std::byte* from = codes + row * columns / 2 + size_t{chunk} * (kTileColumns / 2);
        const uint32_t count = std::min(columns - chunk * kTileColumns, kTileColumns);
        // Two neighbours of the file go to neighbouring bytes, both in the same half.
        for (uint32_t c = 0; c < count; c += 2) {
          const auto pair = std::to_integer<uint32_t>(from[c / 2]);
          const Place at = place_of(row, c);
          unit[at.byte] |= static_cast<std::byte>((pair & 15) << at.shift);
          unit[at.byte + 1] |= static_cast<std::byte>(pair >> 4 << at.shift);
        }
        for (uint32_t g = 0; g < count / kTileGroup; ++g) {
          const size_t index = (row * groups + chunk * kTileGroups + g) * 2;
          std::byte* pair = unit + tile_scale_offset(row % kTileRows, g);
          std::memcpy(pair, source.segments[1].bytes.data() + index, 2);
          std::memcpy(pair + 2, source.segments[2].bytes.data() + index, 2);
        }
      }
    }
  }
}

void unpack(const backend::WeightInfo& weight, const std::byte* packed, backend::RowRange rows,
            float* values) {
  const uint32_t columns = columns_of(weight), chunks = tile_chunks(columns);
  for (size_t row = rows.begin; row < rows.end; ++row) {
    for (uint32_t column = 0; column < columns; ++column) {
      const uint32_t c = column % kTileColumns;
      const std::byte* unit = packed + (row / kTileRows * chunks + column / kTileColumns) * kTileBytes;
      const Place at = place_of(row, c);
      const auto byte = std::to_integer<uint32_t>(unit[at.byte]);
      uint16_t pair[2];
      std::memcpy(pair, unit + tile_scale_offset(row % kTileRows, c / kTileGroup), sizeof(pair));
      *values++ =
          bf16{pair[0]}.to_float() * static_cast<float>(byte >> at.shift & 15) + bf16{pair[1]}.to_float();
    }
  }
}

constexpr backend::WeightLayout kTiles{.name = "tiles_4x1024",
                                       .accepts = accepts,
                                       .packed_bytes = packed_bytes,
                                       .pack = pack,
                                       .unpack = unpack,
                                       .pack_rows = kTileRows,
                                       .needs = backend::kFeatureFast | backend::kFeatureHopper};

}  // namespace

const backend::WeightLayout& tiles_4x1024() { return all_layouts().front(); }

std::span<const backend::WeightLayout> all_layouts() {
  static const std::vector<backend::WeightLayout> kLayouts = [] {
    std::vector<backend::WeightLayout> layouts{kTiles};
    layouts.insert(layouts.end(), cpu_layouts().begin(), cpu_layouts().end());
    return layouts;
  }();
  return kLayouts;
}

}  // namespace refrain::ops
