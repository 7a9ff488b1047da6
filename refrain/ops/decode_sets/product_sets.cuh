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
  uint32_t depth = 0;            ///< units in flight, of a warp of product_ring
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
  /// The sum of a row of a tile, chunks ascending. `sums`: [unit][row].
  __device__ static float total(const ProductParameters& p, const float* sums, uint32_t tile, uint32_t row) {
    const float* parts = sums + tile * p.chunks * kTileRows + row;
    float sum = parts[0];
#pragma unroll 4
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

/// Where a block's units are: one after another within a weight.
template <Ending kEnding>
struct UnitPlaces {
  static constexpr uint32_t kWeights = kEnding == Ending::add    ? 1
                                       : kEnding == Ending::gate ? 2
                                                                 : kMostWeights;
  const std::byte* from[kWeights];  ///< of each weight, as if the block's first unit were there
  uint32_t end[kWeights];           ///< unit with which the next weight begins

  __device__ UnitPlaces(const ProductParameters& p, const BlockWork<kEnding>& work) {
#pragma unroll
    for (uint32_t w = 0; w < kWeights; ++w) {
      int64_t first = int64_t{work.first} * p.chunks;
      if constexpr (kEnding == Ending::gate) {
        first -= w == 0 ? 0 : work.units / 2;
        end[w] = work.units / 2 * (w + 1);
      } else {
        first -= w == 0 ? 0 : int64_t{p.tiles[w - 1]} * p.chunks;
        end[w] = p.tiles[w] < work.first ? 0 : (p.tiles[w] - work.first) * p.chunks;
      }
      from[w] = p.weights[w] + first * int64_t{kTileBytes};
    }
  }
  __device__ const std::byte* of(uint32_t unit) const {
    const std::byte* base = from[kWeights - 1];
#pragma unroll
    for (uint32_t w = kWeights - 1; w-- > 0;) base = unit < end[w] ? from[w] : base;
    return base + size_t{unit} * kTileBytes;
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

/// Rows one after another, whose products are so small that each warp holds all its units in registers before the first is
/// there; kSeveral: more than one. The block's threads hold a row and what it is padded with: 1,024 chunks <= 4 threads kLoads.
template <Ending kEnding, uint32_t kLoads, uint32_t kUnits, bool kSeveral>
__global__ void __launch_bounds__(kMostWarps* kWarp, kSeveral ? 1 : 2)
    product_once(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  extern __shared__ __align__(128) std::byte memory[];
  const Planes planes(memory, p.chunks);
  auto* squares = reinterpret_cast<float*>(memory + Planes::bytes(p.chunks));
  float* sums = squares + ProductShape::squares_bytes_of(p) / sizeof(float);
  const BlockWork<kEnding> work(p);
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;

  const UnitPlaces<kEnding> places(p, work);
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
      if (warp + i * warps < work.units) units[i] = load_unit(places.of(warp + i * warps));
    }
    if (gain != nullptr) gains.template load<true>(gain, 0, p.columns);
  };
  const Running run(p.state, prefetch, trigger_of(kEnding));
  // Asked for before the count of rows is looked at: a plan has memory for one at least.
  row.load(p.input, 0, p.columns);
  float residual = work.residual(p, threadIdx.x, 0);
  const uint32_t padded = p.chunks * kTileColumns;
#pragma unroll 1
  for (uint32_t r = 0; r < (kSeveral ? run.rows : min(run.rows, 1u)); ++r) {
    if (kSeveral && r != 0) {
      row.load(p.input + size_t{r} * p.columns, 0, p.columns);
      residual = work.residual(p, threadIdx.x, r);
      __syncthreads();  // others may read the last row's activations
    }
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
    if (threadIdx.x < work.own * kTileRows) work.finish(p, sums, threadIdx.x, r, residual);
  }
#endif
}

/// One row; units come through a ring of each warp, as many as it has room for before the row is there.
template <Ending kEnding, uint32_t kLoads>
__global__ void __launch_bounds__(kMostWarps* kWarp, 2)
    product_ring(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[kMostWarps * kMostDepth];
  const uint32_t warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  std::byte* behind_ring = memory + size_t{warps} * p.depth * kTileBytes;
  const Planes planes(behind_ring, p.chunks);
  auto* squares = reinterpret_cast<float*>(behind_ring + Planes::bytes(p.chunks));
  float* sums = squares + ProductShape::squares_bytes_of(p) / sizeof(float);
  const BlockWork<kEnding> work(p);
  const UnitPlaces<kEnding> places(p, work);
  const float* gain = kEnding == Ending::add ? nullptr : p.gain;

  UnitRing ring(memory + size_t{warp} * p.depth * kTileBytes, barriers + warp * kMostDepth, p.depth);
  RowPart<kLoads> row, gains;
  const auto prefetch = [&] {
#pragma unroll 1
    for (uint32_t i = 0; i < p.depth; ++i) {
      const uint32_t unit = warp + i * warps;
      if (unit < work.units) ring.start(i, places.of(unit));
    }
    if (gain != nullptr) gains.template load<true>(gain, 0, p.columns);
  };
  const Running run(p.state, prefetch, trigger_of(kEnding));
  row.load(p.input, 0, p.columns);
  const float residual = work.residual(p, threadIdx.x, 0);
  const uint32_t padded = p.chunks * kTileColumns, parts = row.parts(padded);
  if (run.rows != 0) {
    float factor = 1;
    if (gain != nullptr) {
      for (uint32_t part = parts; part-- > 0;) {
        if (parts > 1) row.load(p.input, part, p.columns);
        sum_squares(row, part, padded, squares);
      }
      __syncthreads();
      factor = norm_factor(squares, p.chunks, p.norm);
    }
    for (uint32_t part = 0; part < parts; ++part) {
      if (part != 0) {
        row.load(p.input, part, p.columns);
        if (gain != nullptr) gains.template load<true>(gain, part, p.columns);
      }
      if (gain != nullptr) normalize(row, factor, gains);
      quantize(planes, row, part, padded);
    }
  }
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t ahead = p.depth * warps, on = work.chunk_of(p, warps);
  uint32_t chunk = work.chunk_of(p, warp);
#pragma unroll 1
  for (uint32_t unit = warp; unit < work.units; unit += warps) {
    const Unit part = unit_at(ring.wait());
    if (unit + ahead < work.units) ring.start(ring.place(), places.of(unit + ahead));
    ring.advance();
    const float sum = dot(part, planes, chunk, lane);
    if (lane >= kSumLane) sums[unit * kTileRows + row_of_lane(lane)] = sum;
    chunk += on;
    if (chunk >= p.chunks) chunk -= p.chunks;
  }
  __syncthreads();
  // Of no row the weights were read in vain: what has been started ends before the block does.
  if (run.rows == 0) return;
  for (uint32_t i = threadIdx.x; i < work.own * kTileRows; i += blockDim.x)
    work.finish(p, sums, i, 0, i == threadIdx.x ? residual : work.residual(p, i, 0));
#endif
}

}  // namespace refrain::ops::decode
