// The kernel behind sets of products: rows times one, two or three weights, with what goes before and behind it.
// Weights are read once a row: for a few rows.
#pragma once

#include "refrain/ops/decode_sets/product.cuh"

namespace refrain::ops::decode {

/// What becomes of the sums of a row tile.
enum class Ending : uint8_t {
  store,  ///< outputs[w][., row] = sum, of weight w
  add,    ///< outputs[0][row] = residual[row] + sum
  gate,   ///< outputs[0][row] = silu(sum of weight 0) * sum of weight 1
};

/// silu(gate) * up.
__device__ inline float gated(float gate, float up) {
  return gate * __fdiv_rn(1.0f, 1.0f + expf(-gate)) * up;
}

inline constexpr uint32_t kMostWeights = 3;

struct ProductParameters {
  CommandState state;
  const float* input = nullptr;  ///< [rows, columns]
  const float* gain = nullptr;   ///< [columns]; not null: the input is normalized first
  const float* residual = nullptr;
  const std::byte* weights[kMostWeights] = {};  ///< tiles_4x1024
  float* outputs[kMostWeights] = {};
  uint32_t rows[kMostWeights] = {};  ///< of each weight
  float eps = 0;
  uint32_t columns = 0;
  uint32_t tiles_per_block = 0;  ///< of a gate: of each of the two weights
  uint32_t depth = 0;            ///< units in flight, of a warp; a power of two
  /// As many units as a block has warps, in tiles and chunks.
  uint32_t step_tiles = 0, step_chunks = 0;
};

/// Shared memory of a block.
struct ProductShape {
  uint32_t chunks, local_tiles;
  size_t ring_bytes, planes_bytes, sums_bytes;

  __host__ __device__ ProductShape(const ProductParameters& p, uint32_t warps, Ending ending)
      : chunks(tile_chunks(p.columns)),
        local_tiles(p.tiles_per_block * (ending == Ending::gate ? 2 : 1)),
        ring_bytes(size_t{warps} * p.depth * kTileBytes),
        planes_bytes(Planes::bytes(chunks)),
        sums_bytes(size_t{local_tiles} * kTileRows * chunks * sizeof(float)) {}
  __host__ __device__ size_t bytes() const { return ring_bytes + planes_bytes + sums_bytes; }
};

inline constexpr uint32_t kMostDepth = 4;

/// Of few warps it takes the registers of half an SM, so that the next kernel can begin beside it.
template <uint32_t kWarps, Ending kEnding>
__global__ void __launch_bounds__(kWarps* kWarp, kWarps <= 8 ? 3 : 1)
    product_set(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[kWarps * kMostDepth];
  const ProductShape shape(p, kWarps, kEnding);
  const Planes planes(memory + shape.ring_bytes, shape.chunks);
  float* sums =
      reinterpret_cast<float*>(memory + shape.ring_bytes + shape.planes_bytes);  // [tile][row][chunk]
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // Tiles of this block: of a gate in pairs, tile t of both weights; else those of all weights one after another.
  uint32_t ends[kMostWeights];
  for (uint32_t w = 0, end = 0; w < kMostWeights; ++w) ends[w] = end += tiles_of(p.rows[w]);
  const uint32_t first = blockIdx.x * p.tiles_per_block;
  const uint32_t all = kEnding == Ending::gate ? ends[0] : ends[kMostWeights - 1];
  const uint32_t own = min(p.tiles_per_block, all - first);
  const uint32_t local = kEnding == Ending::gate ? 2 * own : own;
  struct Tile {
    uint32_t weight, index;
  };
  const auto tile = [&](uint32_t i) {
    if (kEnding == Ending::gate) return Tile{i % 2, first + i / 2};
    const uint32_t t = first + i;
    if (kEnding == Ending::add || t < ends[0]) return Tile{0, t};
    return t < ends[1] ? Tile{1, t - ends[0]} : Tile{2, t - ends[1]};
  };
  const uint32_t units = local * shape.chunks;
  const uint32_t mine = units > warp ? (units - warp + kWarps - 1) / kWarps : 0;  // of a row
  const UnitRing ring(memory + size_t{warp} * p.depth * kTileBytes, barriers + warp * kMostDepth, p.depth);
  // A warp's units, kWarps apart, as tiles and chunks without a division each.
  struct Place {
    uint32_t tile, chunk, index;
  };
  const Place begin{warp / shape.chunks, warp % shape.chunks, 0};
  const auto advance = [&](Place& at) {
    at.tile += p.step_tiles;
    at.chunk += p.step_chunks;
    if (at.chunk >= shape.chunks) {
      at.chunk -= shape.chunks;
      ++at.tile;
    }
    if (++at.index == mine) at = begin;  // of the next row
  };
  Place ahead = begin;  // the next unit to be started
  uint32_t started = 0;
  const auto start = [&] {
    const Tile t = tile(ahead.tile);
    ring.start(started++, p.weights[t.weight] + (size_t{t.index} * shape.chunks + ahead.chunk) * kTileBytes);
    advance(ahead);
  };

  const uint32_t early = min(mine, p.depth);
  RowPart<kWarps * kWarp> row, gains;
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;
  const Running run(p.state, [&] {
    while (started < early) start();
    if (gain != nullptr) gains.template load<true>(gain, 0, p.columns);
  });
  // Asked for before the count of rows is looked at: a plan has memory for one at least.
  row.load(p.input, 0, p.columns);
  float residual = 0;  // of the first value that this thread adds to
  if (kEnding == Ending::add && threadIdx.x < own * kTileRows) {
    const uint32_t at = first * kTileRows + threadIdx.x;
    if (at < p.rows[0]) residual = __ldcg(p.residual + at);
  }
  // What has been started ends before the block does.
  if (run.rows == 0) {
    for (uint32_t n = 0; n < early; ++n) ring.wait(n);
    return;
  }
  for (uint32_t r = 0; r < run.rows; ++r) {
    const float* input = p.input + size_t{r} * p.columns;
    if (r != 0) {
      row.load(input, 0, p.columns);
      if (gain != nullptr && row.parts(p.columns) > 1) gains.template load<true>(gain, 0, p.columns);
    }
    quantize(planes, row, input, gains, gain, p.eps, p.columns);
    __syncthreads();
    Place at = begin;
    for (uint32_t i = 0; i < mine; ++i) {
      const Unit unit = unit_at(ring.wait(r * mine + i));
      if (started < run.rows * mine) start();
      const float sum = dot(unit, planes, at.chunk, lane);
      if (lane < kTileRows) sums[(at.tile * kTileRows + row_of_lane(lane)) * shape.chunks + at.chunk] = sum;
      advance(at);
    }
    __syncthreads();
    const auto total = [&](uint32_t i, uint32_t row) {
      const float* parts = sums + (i * kTileRows + row) * shape.chunks;
      float sum = parts[0];
      for (uint32_t chunk = 1; chunk < shape.chunks; ++chunk) sum += parts[chunk];
      return sum;
    };
    for (uint32_t i = threadIdx.x; i < own * kTileRows; i += kWarps * kWarp) {
      const uint32_t at = i / kTileRows, within = i % kTileRows;
      const Tile t = tile(kEnding == Ending::gate ? 2 * at : at);
      const uint32_t row = t.index * kTileRows + within;
      if (row >= p.rows[t.weight]) continue;
      const size_t to = size_t{r} * p.rows[t.weight] + row;
      if constexpr (kEnding == Ending::gate) {
        const float gate = total(2 * at, within), up = total(2 * at + 1, within);
        p.outputs[0][to] = gated(gate, up);
      } else if constexpr (kEnding == Ending::add) {
        const float before = to == first * kTileRows + threadIdx.x ? residual : __ldcg(p.residual + to);
        p.outputs[0][to] = before + total(at, within);
      } else {
        p.outputs[t.weight][to] = total(at, within);
      }
    }
    __syncthreads();  // before the next row's activations
  }
#endif
}

}  // namespace refrain::ops::decode
