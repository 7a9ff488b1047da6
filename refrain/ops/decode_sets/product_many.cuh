// Products of several rows, by tensor cores, with the bits of those of one row (product.cuh): a kernel quantizes the rows once,
// another multiplies 128 rows of weights with 8 or 64 of these. Where that makes fewer blocks than the GPU has room for, blocks
// take some of the columns each, and the last to end adds up what all have left.
//
// Sums of a group are exact integers, so that only what follows them has an order: sums of 16 groups as a tree, which is
// walked from left to right here and keeps one value for each of its levels, then 1,024 columns after 1,024. Values of the
// upper levels, rarely touched, lie in shared memory: registers are for more products at once.
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

/// A block's work at a time: kWarpsM by kWarpsN warps, each kTilesM times 16 rows of weights by kWarpOctets octets. kCopyWarps
/// more copy for them, ahead by as many stages as there is room for.
inline constexpr uint32_t kCopyWarps = 4;  // of which registers are taken for the others: four at least
template <uint32_t kWarpsM_, uint32_t kWarpsN_, uint32_t kTilesM_, uint32_t kWarpOctets_, uint32_t kPerSm_>
struct ManyShape {
  static constexpr uint32_t kPerSm = kPerSm_;  // blocks of an SM
  static constexpr uint32_t kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kTilesM = kTilesM_,
                            kWarpOctets = kWarpOctets_;
  static constexpr uint32_t kWarps = kWarpsM * kWarpsN, kThreads = kWarps * kWarp;  // that multiply
  static constexpr uint32_t kOctets = kWarpsN * kWarpOctets, kRows = kOctets * kOctet;
  static constexpr uint32_t kWeightRows = kWarpsM * kTilesM * 16, kTiles = kWeightRows / kTileRows;
  static constexpr uint32_t kFragments = kTilesM * kWarpOctets;

  // A stage in shared memory: 256 columns of all that the block multiplies.
  static constexpr uint32_t kStageGroups = 4, kStages = 3;
  static constexpr uint32_t kRowBytes = kStageGroups * kTileGroup / 2;  // of codes
  static constexpr uint32_t kRowStride = kRowBytes + 16;  // lanes that read a column meet no bank twice
  static constexpr uint32_t kTileScalesBytes = kStageGroups * kTileRows * 4;
  static constexpr uint32_t kOctetStageBytes = kStageGroups * kOctetBytes;
  static constexpr uint32_t kScales = kWeightRows * kRowStride;
  static constexpr uint32_t kOctetsAt = kScales + kTiles * kTileScalesBytes;
  static constexpr uint32_t kStageBytes = kOctetsAt + kOctets * kOctetStageBytes;
  static_assert(kStageBytes % 128 == 0);
  /// Sums of 512 columns and of all, of each thread.
  static constexpr uint32_t kLevelBytes = kFragments * kThreads * sizeof(float4);
  static constexpr uint32_t kSharedBytes = kStages * kStageBytes + 2 * kLevelBytes;
  /// Left for the last block, of each 1,024 columns.
  static constexpr uint32_t kPartialBytes = kLevelBytes;
};
using WideShape = ManyShape<4, 2, 2, 4, 1>;
using NarrowShape = ManyShape<8, 1, 1, 1, 2>;

/// a b + c: a of 16 x 32 unsigned by rows, b of 32 x 8 signed by columns.
__device__ inline int4 multiply_codes(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int4 c) {
  int4 d;
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, "
      "%11, %12, %13};"
      : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c.x), "r"(c.y), "r"(c.z), "r"(c.w));
  return d;
}

__device__ inline float4 added(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/// What a block takes from the list of work: rows of weights, of activations, and some of the columns.
template <class Shape, Ending kEnding>
struct ManyItem {
  uint32_t block, first_row, octets, begin, end;  // stages [begin, end)
  BlockWork<kEnding> work;

  static constexpr uint32_t kStagesOfChunk = kTileGroups / Shape::kStageGroups;
  __device__ static uint32_t row_blocks(const ProductParameters& p) {
    return (p.state.rows + Shape::kRows - 1) / Shape::kRows;
  }
  /// `rows`: live ones.
  __device__ ManyItem(const ProductParameters& p, uint32_t item, uint32_t rows)
      : work(p, item / row_blocks(p) / p.splits) {
    const uint32_t row_block = item % row_blocks(p), split = item / row_blocks(p) % p.splits;
    block = item / row_blocks(p) / p.splits * row_blocks(p) + row_block;
    first_row = row_block * Shape::kRows;
    octets = rows > first_row ? min((rows - first_row + kOctet - 1) / kOctet, Shape::kOctets) : 0;
    begin = split * p.chunks / p.splits * kStagesOfChunk;
    end = (split + 1) * p.chunks / p.splits * kStagesOfChunk;
  }
  /// Where the first unit is of a row tile of a stage; null: there is none. Of a gate each 16 rows are eight of the first
  /// weight and the same eight of the other.
  __device__ const std::byte* tile(const ProductParameters& p, uint32_t slot) const {
    constexpr bool kGate = kEnding == Ending::gate;
    const uint32_t i = kGate ? slot / 4 * 2 + slot % 2 : slot;
    if (i >= work.own) return nullptr;
    const auto at = work.tile(p, i);
    return p.weights[at.weight + (kGate ? slot / 2 % 2 : 0)] + size_t{at.index} * p.chunks * kTileBytes;
  }
};

/// Stages in shared memory, as warps that copy and that multiply hand them to each other.
template <class Shape>
struct ManyStages {
  uint32_t memory, full, empty;  // addresses in shared memory; barriers, one a slot each

  __device__ ManyStages(const std::byte* memory, const uint64_t* barriers)
      : memory(shared_address(memory)),
        full(shared_address(barriers)),
        empty(shared_address(barriers + Shape::kStages)) {}
  /// By one thread.
  __device__ void init() const {
    for (uint32_t i = 0; i < Shape::kStages; ++i) {
      init_barrier(full + i * 8, kCopyWarps * kWarp + 1);
      init_barrier(empty + i * 8, Shape::kWarps);
    }
    fence_copy_barriers();
  }
  /// The n-th stage, of all that the block has.
  __device__ static uint32_t slot(uint32_t n) { return n % Shape::kStages; }
  __device__ static uint32_t parity(uint32_t n) { return n / Shape::kStages % 2; }
  __device__ void await_full(uint32_t n) const { await_copy(full + slot(n) * 8, parity(n)); }
  __device__ void await_empty(uint32_t n) const {
    if (n >= Shape::kStages) await_copy(empty + slot(n) * 8, parity(n) ^ 1);
  }
  /// By a warp that has read it.
  __device__ void release(uint32_t n) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + slot(n) * 8) : "memory");
  }

  /// Codes and scales of a stage, by the warps that copy. `tile`: lane l's is the l-th.
  __device__ void copy_weights(uint32_t n, uint32_t stage, const std::byte* tile,
                               const std::byte* some) const {
    constexpr uint32_t kStagesOfChunk = kTileGroups / Shape::kStageGroups;
    constexpr uint32_t kPieces = Shape::kRowBytes / 16, kScalePieces = Shape::kTileScalesBytes / 16;
    static_assert(Shape::kTiles == kWarp && kPieces * kTileRows == kWarp && kScalePieces == kCopyWarps);
    const uint32_t warp = (threadIdx.x - Shape::kThreads) / kWarp;
    const uint32_t lane = threadIdx.x % kWarp, row = lane / kPieces, piece = lane % kPieces;
    const uint32_t quarter = stage % kStagesOfChunk, to = memory + slot(n) * Shape::kStageBytes;
    const std::byte* const unit =
        tile != nullptr ? tile + size_t{stage / kStagesOfChunk} * kTileBytes : nullptr;
    const uint32_t of_codes = row * kTileRowBytes + quarter * Shape::kRowBytes + piece * 16;
    const auto of_lane = [&](uint32_t l) {
      return reinterpret_cast<const std::byte*>(
          __shfl_sync(~0u, reinterpret_cast<unsigned long long>(unit), l));
    };
#pragma unroll
    for (uint32_t i = 0; i < Shape::kTiles / kCopyWarps; ++i) {
      const uint32_t t = warp + i * kCopyWarps;
      copy_16(to + (t * kTileRows + row) * Shape::kRowStride + piece * 16, of_lane(t), of_codes, some);
    }
    const uint32_t scales = warp * kWarp + lane;
    copy_16(to + Shape::kScales + scales * 16, of_lane(scales / kScalePieces),
            kTileCodesBytes + quarter * Shape::kTileScalesBytes + scales % kScalePieces * 16, some);
  }
  /// The stage's activations, of `octets`; it is full when these have come, and all that the warps asked for before.
  __device__ void copy_octets(uint32_t n, const std::byte* from, size_t octet_bytes, uint32_t octets) const {
    const uint32_t lane = threadIdx.x % kWarp, barrier = full + slot(n) * 8;
    if (threadIdx.x == Shape::kThreads) expect_bytes(barrier, octets * Shape::kOctetStageBytes);
    __syncwarp();
    if (threadIdx.x < Shape::kThreads + octets)
      bulk_copy(memory + slot(n) * Shape::kStageBytes + Shape::kOctetsAt + lane * Shape::kOctetStageBytes,
                from + lane * octet_bytes, Shape::kOctetStageBytes, barrier);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
  }

 private:
  /// 16 bytes; none but zeros where `from` is null.
  __device__ static void copy_16(uint32_t to, const std::byte* from, uint32_t offset_bytes,
                                 const std::byte* some) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(from != nullptr ? from + offset_bytes : some), "r"(from != nullptr ? 16 : 0)
                 : "memory");
  }
};

/// What a warp multiplies, and the sums of its last 256 columns.
template <class Shape>
struct ManyProducts {
  uint32_t slot;                                    // of its rows of weights, this lane's first
  uint32_t first;                                   // octet; it has every kWarpsN-th from there
  float4 sums[Shape::kTilesM][Shape::kWarpOctets];  // rows of weights l / 4 and 8 more, two rows each

  __device__ ManyProducts()
      : slot(threadIdx.x / kWarp % Shape::kWarpsM * Shape::kTilesM * 16 + threadIdx.x % kWarp / 4),
        first(threadIdx.x / kWarp / Shape::kWarpsM) {}

  /// `octets`: that are there; kWhole: all.
  template <bool kWhole>
  __device__ void add_stage(const std::byte* from, uint32_t octets) {
    const uint32_t lane = threadIdx.x % kWarp, quad = lane % 4;
    float4 left[Shape::kTilesM][Shape::kWarpOctets];
#pragma unroll
    for (uint32_t g = 0; g < Shape::kStageGroups; ++g) {
      uint32_t codes[Shape::kTilesM][2][4];  // times 16
      float scale[Shape::kTilesM][2], bias[Shape::kTilesM][2];
#pragma unroll
      for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
          const uint32_t row = slot + m * 16 + h * 8;
#pragma unroll
          for (uint32_t k = 0; k < 2; ++k) {
            const auto word = *reinterpret_cast<const uint32_t*>(from + row * Shape::kRowStride + g * 32 +
                                                                 k * 16 + quad * 4);
            codes[m][k][h] = word << 4 & 0xF0F0F0F0u;
            codes[m][k][h + 2] = word & 0xF0F0F0F0u;
          }
          const auto pair = *reinterpret_cast<const uint32_t*>(from + Shape::kScales +
                                                               row / kTileRows * Shape::kTileScalesBytes +
                                                               g * kTileRows * 4 + row % kTileRows * 4);
          scale[m][h] = bf16_low(pair);
          bias[m][h] = bf16_high(pair);
        }
      }
#pragma unroll
      for (uint32_t n = 0; n < Shape::kWarpOctets; ++n) {
        const uint32_t octet = n * Shape::kWarpsN + first;
        if (!kWhole && octet >= octets) break;
        const std::byte* x = from + Shape::kOctetsAt + octet * Shape::kOctetStageBytes + g * kOctetBytes;
        const uint4 high = reinterpret_cast<const uint4*>(x)[lane],
                    low = reinterpret_cast<const uint4*>(x + kOctetPlaneBytes)[lane];
        const float4 groups = reinterpret_cast<const float4*>(x + 2 * kOctetPlaneBytes)[quad];
#pragma unroll
        for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
          const int4 none = make_int4(0, 0, 0, 0);
          const int4 upper =
              multiply_codes(codes[m][1], high.z, high.w, multiply_codes(codes[m][0], high.x, high.y, none));
          const int4 lower =
              multiply_codes(codes[m][1], low.z, low.w, multiply_codes(codes[m][0], low.x, low.y, none));
          const auto value = [&](uint32_t h, float s, float ones, int hi, int lo) {
            return s * __fmaf_rn(scale[m][h], static_cast<float>(hi * 256 + lo), bias[m][h] * ones);
          };
          const float4 now = make_float4(
              value(0, groups.x, groups.y, upper.x, lower.x), value(0, groups.z, groups.w, upper.y, lower.y),
              value(1, groups.x, groups.y, upper.z, lower.z), value(1, groups.z, groups.w, upper.w, lower.w));
          if (g == 0) {
            sums[m][n] = now;
          } else if (g == 1) {
            sums[m][n] = added(sums[m][n], now);
          } else if (g == 2) {
            left[m][n] = now;
          } else {
            sums[m][n] = added(sums[m][n], added(left[m][n], now));
          }
        }
      }
    }
  }
  template <class Do>
  __device__ static void each(Do act) {
#pragma unroll
    for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (uint32_t n = 0; n < Shape::kWarpOctets; ++n) act(m, n);
    }
  }
};

/// Where the block's part lies of what blocks leave each other.
template <class Shape>
__device__ float4* partial_of(const ProductParameters& p, uint32_t chunk, uint32_t blocks, uint32_t block) {
  return reinterpret_cast<float4*>(p.state.workspace + octets_bytes(p.state.rows, p.columns) +
                                   (size_t{chunk} * blocks + block) * Shape::kPartialBytes) +
         threadIdx.x;
}

/// `total(m, n)`: this thread's sums.
template <class Shape, Ending kEnding, class Total>
__device__ void finish_item(const ProductParameters& p, const ManyItem<Shape, kEnding>& item,
                            const ManyProducts<Shape>& products, uint32_t rows, Total total) {
  const uint32_t quad = threadIdx.x % 4;
#pragma unroll
  for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
    for (uint32_t h = 0; h < (kEnding == Ending::gate ? 1 : 2); ++h) {
      const uint32_t row = products.slot + m * 16 + h * 8;
      const uint32_t own = kEnding == Ending::gate ? row / 16 * 8 + row % 8 : row;
      if (own / kTileRows >= item.work.own) continue;
      const auto tile = item.work.tile(p, own / kTileRows);
      const uint32_t output = tile.index * kTileRows + own % kTileRows, outputs = p.rows[tile.weight];
      if (output >= outputs) continue;
#pragma unroll
      for (uint32_t n = 0; n < Shape::kWarpOctets; ++n) {
        const float4 sums = total(m, n);
#pragma unroll
        for (uint32_t e = 0; e < 2; ++e) {
          const uint32_t r = item.first_row + (n * Shape::kWarpsN + products.first) * kOctet + quad * 2 + e;
          if (r >= rows) continue;
          const float upper = e == 0 ? sums.x : sums.y, lower = e == 0 ? sums.z : sums.w;
          const size_t to = size_t{r} * outputs + output;
          float result = h == 0 ? upper : lower;
          if constexpr (kEnding == Ending::gate) result = gated(upper, lower);
          if constexpr (kEnding == Ending::add) result = __ldcg(p.residual + to) + result;
          p.outputs[tile.weight][to] = result;
        }
      }
    }
  }
}

/// By the warps that copy: all stages of the block's items, in their order.
template <class Shape, Ending kEnding>
__device__ void copy_items(const ProductParameters& p, const ManyStages<Shape>& stages, uint32_t rows) {
  const uint32_t lane = threadIdx.x % kWarp;
  const size_t octet_bytes = size_t{p.chunks} * kTileGroups * kOctetBytes;
  uint32_t n = 0;
  for (uint32_t i = blockIdx.x; i < p.items; i += gridDim.x) {
    const ManyItem<Shape, kEnding> item(p, i, rows);
    if (item.octets == 0) continue;
    const std::byte* const tile = item.tile(p, lane);
    const std::byte* const octets = p.state.workspace + item.first_row / kOctet * octet_bytes;
    for (uint32_t stage = item.begin; stage < item.end; ++stage, ++n) {
      stages.await_empty(n);
      // Those of the first item have been asked for ahead.
      if (i != blockIdx.x || n >= Shape::kStages) stages.copy_weights(n, stage, tile, p.weights[0]);
      stages.copy_octets(n, octets + size_t{stage} * Shape::kOctetStageBytes, octet_bytes, item.octets);
    }
  }
}

template <class Shape, Ending kEnding>
__global__ void __launch_bounds__(Shape::kThreads + kCopyWarps * kWarp, Shape::kPerSm)
    product_many(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  using Item = ManyItem<Shape, kEnding>;
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[2 * Shape::kStages];
  __shared__ bool last;
  const uint32_t lane = threadIdx.x % kWarp;
  const bool copies = threadIdx.x >= Shape::kThreads;
  const ManyStages<Shape> stages(memory, barriers);
  if (threadIdx.x == 0) stages.init();
  const auto prefetch = [&] {
    if (!copies) return;
    const Item item(p, blockIdx.x, 0);
    const std::byte* const tile = item.tile(p, lane);
    for (uint32_t n = 0; n < min(Shape::kStages, item.end - item.begin); ++n)
      stages.copy_weights(n, item.begin + n, tile, p.weights[0]);
  };
  const Running run(p.state, prefetch, trigger_of(kEnding));
  __syncthreads();  // the barriers
  if (copies) {
    if constexpr (Shape::kPerSm == 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    // What is on its way has its place, also where the first item has no rows.
    if (Item(p, blockIdx.x, run.rows).octets == 0) asm volatile("cp.async.wait_all;" ::: "memory");
    copy_items<Shape, kEnding>(p, stages, run.rows);
    asm volatile("cp.async.wait_all;" ::: "memory");
    return;
  }

  if constexpr (Shape::kPerSm == 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");

  ManyProducts<Shape> products;
  float4 k256[Shape::kTilesM][Shape::kWarpOctets];
  auto* const level = reinterpret_cast<float4*>(memory + Shape::kStages * Shape::kStageBytes) + threadIdx.x;
  const auto at = [](uint32_t m, uint32_t n) { return (m * Shape::kWarpOctets + n) * Shape::kThreads; };
  const auto k512 = [&](uint32_t m, uint32_t n) -> float4& { return level[at(m, n)]; };
  const auto total = [&](uint32_t m, uint32_t n) -> float4& {
    return level[at(m, n) + Shape::kFragments * Shape::kThreads];
  };
  const uint32_t blocks = p.items / p.splits;
  uint32_t n_of_all = 0;
#pragma unroll 1
  for (uint32_t i = blockIdx.x; i < p.items; i += gridDim.x) {
    const Item item(p, i, run.rows);
    if (item.octets == 0) continue;
#pragma unroll 1
    for (uint32_t stage = item.begin; stage < item.end; ++stage, ++n_of_all) {
      stages.await_full(n_of_all);
      const std::byte* from = memory + stages.slot(n_of_all) * Shape::kStageBytes;
      item.octets == Shape::kOctets ? products.template add_stage<true>(from, item.octets)
                                    : products.template add_stage<false>(from, item.octets);
      stages.release(n_of_all);
      const uint32_t quarter = stage % Item::kStagesOfChunk;
      if (quarter % 2 == 0) {
        products.each([&](uint32_t m, uint32_t n) { k256[m][n] = products.sums[m][n]; });
      } else if (quarter == 1) {
        products.each([&](uint32_t m, uint32_t n) { k512(m, n) = added(k256[m][n], products.sums[m][n]); });
      } else {
        products.each([&](uint32_t m, uint32_t n) {
          k256[m][n] = added(k512(m, n), added(k256[m][n], products.sums[m][n]));
        });
        if (p.splits > 1) {
          float4* const to = partial_of<Shape>(p, stage / Item::kStagesOfChunk, blocks, item.block);
          products.each([&](uint32_t m, uint32_t n) { __stcg(to + at(m, n), k256[m][n]); });
        } else if (stage < Item::kStagesOfChunk) {
          products.each([&](uint32_t m, uint32_t n) { total(m, n) = k256[m][n]; });
        } else {
          products.each([&](uint32_t m, uint32_t n) { total(m, n) = added(total(m, n), k256[m][n]); });
        }
      }
    }
    if (p.splits > 1) {
      const auto meet = [] { asm volatile("bar.sync 1, %0;" ::"n"(Shape::kThreads) : "memory"); };
      __threadfence();
      meet();
      if (threadIdx.x == 0) {
        last = atomicAdd(p.state.tickets + item.block, 1) == p.splits - 1;
        if (last) p.state.tickets[item.block] = 0;
        __threadfence();
      }
      meet();
      if (!last) continue;
      for (uint32_t chunk = 0; chunk < p.chunks; ++chunk) {
        const float4* from = partial_of<Shape>(p, chunk, blocks, item.block);
        products.each([&](uint32_t m, uint32_t n) {
          const float4 part = __ldcg(from + at(m, n));
          total(m, n) = chunk == 0 ? part : added(total(m, n), part);
        });
      }
    }
    finish_item(p, item, products, run.rows, total);
  }
#endif
}

}  // namespace refrain::ops::decode
