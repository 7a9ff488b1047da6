// Activations of several rows for products by tensor cores: quantized once a command, as product.cuh does it for one.
#pragma once

#include "refrain/ops/decode_sets/product_sets.cuh"

namespace refrain::ops::decode {

/// Eight rows' activations of a pair of groups: f16, as lanes of a warp hold them for m16n8k16, then what else there is of each
/// row: S0 / 2^24 of all, (2^24 s, S1 / 2^24) of all. Words 2 q and 2 q + 1 of a row's group of codes meet in lanes q of four.
/// Of each word one multiplication has bytes 0 and 2, the next 1 and 3: their low halves where k is 2 q and 2 q + 1, the high
/// ones, 16 times too large, where k is 8 more and meets q / 16. Codes are used as they are, as the least numbers of f16, in
/// units of 2^-24.
inline constexpr uint32_t kOctet = 8;
inline constexpr uint32_t kOctetGroupBytes = kOctet * kTileGroup * 2;
inline constexpr uint32_t kOctetSums = 2 * kOctetGroupBytes,  ///< where of a pair S0 is
    kOctetScales = kOctetSums + kOctet * sizeof(float);       ///< and s with S1
inline constexpr uint32_t kOctetPairBytes = kOctetSums + 128;
inline constexpr uint32_t kGroupSteps = kTileGroup / 16;  ///< multiplications of a group

/// Octet after octet, of each all pairs of the padded columns.
constexpr size_t octets_bytes(uint32_t rows, uint32_t columns) {
  return size_t{(rows + kOctet - 1) / kOctet} * tile_chunks(columns) * kTilePairs * kOctetPairBytes;
}

/// What quantize() puts there of one row. kForGroups: of each multiplication and each eight of its k the eight rows one after
/// another, 16 bytes each; else what a lane has of two multiplications is together.
template <bool kForGroups>
struct OctetRow {
  std::byte* pairs;
  uint32_t row;  // of the octet

  __device__ OctetRow(std::byte* octets, uint32_t chunks, uint32_t r)
      : pairs(octets + size_t{r / kOctet} * chunks * kTilePairs * kOctetPairBytes), row(r % kOctet) {}
  __device__ void put(uint32_t column, const uint32_t (&q)[4]) const {
    const uint32_t word = column / 32 % 2 * 4 + column / 4 % 4, half = column / 16 % 2;
    const uint32_t lane = row * 4 + word / 2, step = word % 2 * 2;
    std::byte* group = pairs + size_t{column / (2 * kTileGroup)} * kOctetPairBytes +
                       column / kTileGroup % 2 * kOctetGroupBytes;
    const auto words = reinterpret_cast<uint32_t*>(group);
    const float unit = half == 0 ? 1.0f : 1.0f / 16;
    const auto at = [&](uint32_t m) {
      return kForGroups ? (m * 2 + half) * kWarp + lane : (m / 2 * kWarp + lane) * 4 + m % 2 * 2 + half;
    };
    const auto f16s = [&](uint32_t low, uint32_t high) {
      uint32_t word;
      asm("cvt.rn.f16x2.f32 %0, %1, %2;"
          : "=r"(word)
          : "f"((__uint_as_float(high) - kMagicFloat) * unit),
            "f"((__uint_as_float(low) - kMagicFloat) * unit));
      return word;
    };
    words[at(step)] = f16s(q[0], q[2]);
    words[at(step + 1)] = f16s(q[1], q[3]);
  }
  /// `scale`: s / 16.
  __device__ void put_pair(uint32_t pair, float scale, float sum0, float sum1) const {
    std::byte* to = pairs + size_t{pair} * kOctetPairBytes;
    reinterpret_cast<float*>(to + kOctetSums)[row] = sum0 * 0x1p-24f;
    reinterpret_cast<float2*>(to + kOctetScales)[row] = make_float2(scale * 0x1p28f, sum1 * 0x1p-24f);
  }
};

inline constexpr uint32_t kQuantizeThreads = 256;

/// A block a row, of all that the last octet has: rows past the live ones become zero. To the command's workspace.
template <Ending kEnding, bool kForGroups>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_rows(const __grid_constant__ ProductParameters p) {
  __shared__ __align__(16) float squares[kMostTileChunks * kTileColumns / (4 * kWarp)];
  const Running run(p.state);
  const uint32_t r = blockIdx.x;
  if (r >= (run.rows + kOctet - 1) / kOctet * kOctet) return;
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;
  const float* input = p.input + size_t{r} * p.columns;
  const uint32_t columns = r < run.rows ? p.columns : 0, padded = p.chunks * kTileColumns;
  const OctetRow<kForGroups> to(p.state.workspace, p.chunks, r);
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
