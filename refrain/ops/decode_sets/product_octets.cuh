// Activations of several rows for products by tensor cores: quantized once a command, as product.cuh does it for one.
#pragma once

#include "refrain/ops/decode_sets/product_sets.cuh"

namespace refrain::ops::decode {

/// Eight rows' activations of a group of 64 columns, as lanes of a warp hold them for m16n8k32: lane l has of row l / 4 and of
/// each 16 columns the four from 4 (l % 4) on. First plane hi of all, then plane lo, then (s / 16, 16 S) of each row.
inline constexpr uint32_t kOctet = 8;
inline constexpr uint32_t kOctetPlaneBytes = kOctet * kTileGroup;
inline constexpr uint32_t kOctetBytes = 2 * kOctetPlaneBytes + kOctet * sizeof(float2);

/// Octet after octet, of each all groups of the padded columns.
constexpr size_t octets_bytes(uint32_t rows, uint32_t columns) {
  return size_t{(rows + kOctet - 1) / kOctet} * tile_chunks(columns) * kTileGroups * kOctetBytes;
}

/// What quantize() puts there of one row.
struct OctetRow {
  std::byte* groups;
  uint32_t row;  // of the octet

  __device__ OctetRow(std::byte* octets, uint32_t chunks, uint32_t r)
      : groups(octets + size_t{r / kOctet} * chunks * kTileGroups * kOctetBytes), row(r % kOctet) {}
  __device__ void put(uint32_t column, uint32_t high, uint32_t low) const {
    const uint32_t lane = row * 4 + column / 4 % 4;
    auto* to = reinterpret_cast<uint32_t*>(groups + size_t{column / kTileGroup} * kOctetBytes) + lane * 4 +
               column / 16 % 4;
    to[0] = high;
    to[kOctetPlaneBytes / 4] = low;
  }
  __device__ void put_group(uint32_t group, float2 scale_and_sum) const {
    auto* to = reinterpret_cast<float2*>(groups + size_t{group} * kOctetBytes + size_t{2} * kOctetPlaneBytes);
    to[row] = scale_and_sum;
  }
};

inline constexpr uint32_t kQuantizeThreads = 256;

/// A block a row, of all that the last octet has: rows past the live ones become zero. To the command's workspace.
template <Ending kEnding>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_rows(const __grid_constant__ ProductParameters p) {
  __shared__ __align__(16) float squares[kMostTileChunks * kTileColumns / (4 * kWarp)];
  const Running run(p.state);
  const uint32_t r = blockIdx.x;
  if (r >= (run.rows + kOctet - 1) / kOctet * kOctet) return;
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;
  const float* input = p.input + size_t{r} * p.columns;
  const uint32_t columns = r < run.rows ? p.columns : 0, padded = p.chunks * kTileColumns;
  const OctetRow to(p.state.workspace, p.chunks, r);
  RowPart<kMostLoads> row;
  const uint32_t parts = row.parts(padded);
  float factor = 1;
  if (gain != nullptr) {
    for (uint32_t part = parts; part-- > 0;) {
      row.load(input, part, columns);
      sum_squares(row, part, padded, squares);
    }
    __syncthreads();
    factor = norm_factor(squares, p.chunks, p.norm);
  }
  for (uint32_t part = 0; part < parts; ++part) {
    if (gain == nullptr || part != 0) row.load(input, part, columns);
    if (gain != nullptr) {
      RowPart<kMostLoads> gains;
      gains.template load<true>(gain, part, p.columns);
      normalize(row, factor, gains);
    }
    quantize(to, row, part, padded);
  }
}

}  // namespace refrain::ops::decode
