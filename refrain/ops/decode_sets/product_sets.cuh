// The kernels behind sets of products: rows times one, two or three weights, with what goes before and behind it.
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

/// Behind a sum with a residual stands the next layer's attention, whose keys and values would be on their way before the row
/// that the sum waits for: it holds them back.
constexpr Trigger trigger_of(Ending ending) { return ending == Ending::add ? Trigger::late : Trigger::early; }

/// silu(gate) * up.
__device__ inline float gated(float gate, float up) {
  return gate * __fdiv_rn(1.0f, 1.0f + expf(-gate)) * up;
}

inline constexpr uint32_t kMostWeights = 3, kMostWarps = 16;
inline constexpr uint32_t kMostLoads = 4;  ///< of a thread for its part of a row
inline constexpr uint32_t kMostDepth = 4;

struct ProductParameters {
  CommandState state;
  const float* input = nullptr;  ///< [rows, columns]
  const float* gain = nullptr;   ///< [columns]; not null: the input is normalized first
  const float* residual = nullptr;
  const std::byte* weights[kMostWeights] = {};  ///< tiles_4x1024
  float* outputs[kMostWeights] = {};
  uint32_t rows[kMostWeights] = {};   ///< of each weight
  uint32_t tiles[kMostWeights] = {};  ///< where the tiles of each weight end, of all one after another
  RowNorm norm;
  uint32_t columns = 0;
  uint32_t chunks = 0;
  uint32_t chunk_inverse = 0;    ///< 2^31 / chunks + 1
  uint32_t tiles_per_block = 0;  ///< of a gate: of each of the two weights
  uint32_t depth = 0;            ///< units in flight, of a warp of product_ring; a power of two
  uint32_t items = 0;            ///< of product_many: what its blocks take one after another
  uint32_t splits = 1;           ///< of the columns, among items
};

/// What a block computes: tiles, each of `chunks` units. Of a gate those of the first weight and then the same of the second;
/// else tiles of all weights one after another.
template <Ending kEnding>
struct BlockWork {
  static constexpr uint32_t kWeights =
      kEnding == Ending::store ? kMostWeights : 1;  ///< that tiles run through
  uint32_t first, own, units;

  __device__ explicit BlockWork(const ProductParameters& p, uint32_t block = blockIdx.x)
      : first(block * p.tiles_per_block),
        own(min(p.tiles_per_block, p.tiles[kWeights - 1] - first)),
        units(own * p.chunks * (kEnding == Ending::gate ? 2 : 1)) {}

  /// The weight of a tile, counted from the block's first, and its index there.
  struct Tile {
    uint32_t weight, index;
  };
  __device__ Tile tile(const ProductParameters& p, uint32_t i) const {
    const uint32_t t = first + i;
    if (kWeights == 1 || t < p.tiles[0]) return {0, t};
    return t < p.tiles[1] ? Tile{1, t - p.tiles[0]} : Tile{2, t - p.tiles[1]};
  }
  __device__ static uint32_t tile_of(const ProductParameters& p, uint32_t unit) {
    return static_cast<uint32_t>(uint64_t{unit} * p.chunk_inverse >> 31);
  }
  __device__ static uint32_t chunk_of(const ProductParameters& p, uint32_t unit) {
    return unit - tile_of(p, unit) * p.chunks;
  }
  __device__ const std::byte* unit(const ProductParameters& p, uint32_t unit) const {
    if constexpr (kEnding == Ending::gate) {
      const bool up = 2 * unit >= units;
      return (up ? p.weights[1] : p.weights[0]) +
             size_t{first * p.chunks + unit - (up ? units / 2 : 0)} * kTileBytes;
    }
    const uint32_t i = tile_of(p, unit);
    const Tile at = tile(p, i);
    return p.weights[at.weight] + size_t{at.index * p.chunks + unit - i * p.chunks} * kTileBytes;
  }

  /// The sum of a row of a tile, chunks ascending. `sums`: [unit][row].
  __device__ static float total(const ProductParameters& p, const float* sums, uint32_t tile, uint32_t row) {
    const float* parts = sums + tile * p.chunks * kTileRows + row;
    float sum = parts[0];
#pragma unroll 2
    for (uint32_t chunk = 1; chunk < p.chunks; ++chunk) sum += parts[chunk * kTileRows];
    return sum;
  }
  /// The i-th output of the block, of row r of the input. `residual`: what it is added to.
  __device__ void finish(const ProductParameters& p, const float* sums, uint32_t i, uint32_t r,
                         float residual) const {
    const uint32_t t = i / kTileRows, within = i % kTileRows;
    const Tile at = tile(p, t);
    const uint32_t row = at.index * kTileRows + within;
    if (row >= p.rows[at.weight]) return;
    float result = total(p, sums, t, within);
    if constexpr (kEnding == Ending::gate) result = gated(result, total(p, sums, own + t, within));
    if constexpr (kEnding == Ending::add) result = residual + result;
    p.outputs[at.weight][size_t{r} * p.rows[at.weight] + row] = result;
  }
  /// What the i-th output is added to.
  __device__ float residual(const ProductParameters& p, uint32_t i, uint32_t r) const {
    const uint32_t row = first * kTileRows + i;
    if (kEnding != Ending::add || i >= own * kTileRows || row >= p.rows[0]) return 0;
    return __ldcg(p.residual + size_t{r} * p.rows[0] + row);
  }
};

/// Dynamic shared memory of a block, in this order.
struct ProductShape {
  size_t ring_bytes, planes_bytes, squares_bytes, sums_bytes;

  /// `warps`: with a ring.
  ProductShape(const ProductParameters& p, uint32_t warps, Ending ending)
      : ring_bytes(size_t{warps} * p.depth * kTileBytes),
        planes_bytes(Planes::bytes(p.chunks)),
        squares_bytes(squares_bytes_of(p)),
        sums_bytes(size_t{p.tiles_per_block} * (ending == Ending::gate ? 2 : 1) * p.chunks * kTileRows *
                   sizeof(float)) {}
  __host__ __device__ static constexpr size_t squares_bytes_of(const ProductParameters& p) {
    return size_t{p.chunks} * (kTileColumns / (4 * kWarp)) * sizeof(float);
  }
  size_t bytes() const { return ring_bytes + planes_bytes + squares_bytes + sums_bytes; }
};

/// One row, whose products are so small that each warp holds all its units in registers before the row is there.
/// The block's threads hold the row and what it is padded with: 1,024 chunks <= 4 threads kLoads.
template <Ending kEnding, uint32_t kLoads, uint32_t kUnits>
__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    product_once(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  extern __shared__ __align__(128) std::byte memory[];
  const Planes planes(memory, p.chunks);
  auto* squares = reinterpret_cast<float*>(memory + Planes::bytes(p.chunks));
  float* sums = squares + ProductShape::squares_bytes_of(p) / sizeof(float);
  const BlockWork<kEnding> work(p);
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;

  Unit units[kUnits];
  uint32_t chunks[kUnits];
#pragma unroll
  for (uint32_t i = 0; i < kUnits; ++i) {
    chunks[i] = work.chunk_of(p, warp + i * warps);
    asm volatile("" : "+r"(chunks[i]));  // now, not when the row is there
  }
  RowPart<kLoads> row, gains;
  const auto prefetch = [&] {
#pragma unroll
    for (uint32_t i = 0; i < kUnits; ++i) {
      if (warp + i * warps < work.units) units[i] = load_unit(work.unit(p, warp + i * warps));
    }
    if (gain != nullptr) gains.template load<true>(gain, 0, p.columns);
  };
  const Running run(p.state, prefetch, trigger_of(kEnding));
  // Asked for before the count of rows is looked at: a plan has memory for one at least.
  row.load(p.input, 0, p.columns);
  const float residual = work.residual(p, threadIdx.x, 0);
  if (run.rows == 0) return;
  const uint32_t padded = p.chunks * kTileColumns;
  if (gain != nullptr) {
    sum_squares(row, 0, padded, squares);
    __syncthreads();
    normalize(row, norm_factor(squares, p.chunks, p.norm), gains);
  }
  quantize(planes, row, 0, padded);
  __syncthreads();
#pragma unroll
  for (uint32_t i = 0; i < kUnits; ++i) {
    const uint32_t unit = warp + i * warps;
    if (unit >= work.units) break;  // by whole warps
    const float sum = dot(units[i], planes, chunks[i], lane);
    if (lane >= kSumLane) sums[unit * kTileRows + row_of_lane(lane)] = sum;
  }
  __syncthreads();
  if (threadIdx.x < work.own * kTileRows) work.finish(p, sums, threadIdx.x, 0, residual);
#endif
}

/// Any rows, one after another; units come through a ring of each warp, as many as it has room for before the first row is
/// there.
template <Ending kEnding, uint32_t kLoads>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1)
    product_ring(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[kMostWarps * kMostDepth];
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  std::byte* behind_ring = memory + size_t{warps} * p.depth * kTileBytes;
  const Planes planes(behind_ring, p.chunks);
  auto* squares = reinterpret_cast<float*>(behind_ring + Planes::bytes(p.chunks));
  float* sums = squares + ProductShape::squares_bytes_of(p) / sizeof(float);
  const BlockWork<kEnding> work(p);
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;

  const UnitRing ring(memory + size_t{warp} * p.depth * kTileBytes, barriers + warp * kMostDepth, p.depth);
  const uint32_t mine = work.units > warp ? (work.units - warp + warps - 1) / warps : 0;  // of a row
  uint32_t started = 0, next = warp;
  const auto start = [&] {
    ring.start(started++, work.unit(p, next));
    next += warps;
    if (next >= work.units) next = warp;  // of the next row
  };
  const uint32_t early = min(mine, p.depth);
  RowPart<kLoads> row, gains;
  const auto prefetch = [&] {
    while (started < early) start();
    if (gain != nullptr) gains.template load<true>(gain, 0, p.columns);
  };
  const Running run(p.state, prefetch, trigger_of(kEnding));
  row.load(p.input, 0, p.columns);
  float residual = work.residual(p, threadIdx.x, 0);
  // What has been started ends before the block does.
  if (run.rows == 0) {
    for (uint32_t n = 0; n < early; ++n) ring.wait(n);
    return;
  }
  const uint32_t padded = p.chunks * kTileColumns, parts = row.parts(padded);
  for (uint32_t r = 0, n = 0; r < run.rows; ++r) {
    const float* input = p.input + size_t{r} * p.columns;
    if (r != 0) {
      row.load(input, 0, p.columns);
      residual = work.residual(p, threadIdx.x, r);
      if (gain != nullptr && parts > 1) gains.template load<true>(gain, 0, p.columns);
    }
    float factor = 1;
    if (gain != nullptr) {
      for (uint32_t part = parts; part-- > 0;) {
        if (parts > 1) row.load(input, part, p.columns);
        sum_squares(row, part, padded, squares);
      }
      __syncthreads();
      factor = norm_factor(squares, p.chunks, p.norm);
    }
    for (uint32_t part = 0; part < parts; ++part) {
      if (part != 0) {
        row.load(input, part, p.columns);
        if (gain != nullptr) gains.template load<true>(gain, part, p.columns);
      }
      if (gain != nullptr) normalize(row, factor, gains);
      quantize(planes, row, part, padded);
    }
    __syncthreads();
    for (uint32_t unit = warp; unit < work.units; unit += warps, ++n) {
      const Unit part = unit_at(ring.wait(n));
      if (started < run.rows * mine) start();
      const float sum = dot(part, planes, work.chunk_of(p, unit), lane);
      if (lane >= kSumLane) sums[unit * kTileRows + row_of_lane(lane)] = sum;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < work.own * kTileRows; i += blockDim.x)
      work.finish(p, sums, i, r, i == threadIdx.x ? residual : work.residual(p, i, r));
    if (r + 1 < run.rows) __syncthreads();  // before the next row's activations
  }
#endif
}

}  // namespace refrain::ops::decode
