// What blocks of product_many take from memory, and how it comes to shared memory.
#pragma once

#include "refrain/ops/decode_sets/product_octets.cuh"

namespace refrain::ops::decode {

/// A block's work at a time: kWarps warps, each 16 rows of weights by kOctets octets. kCopyWarps more copy for them, ahead by
/// kStages.
inline constexpr uint32_t kCopyWarps = 4;  // of which registers are taken for the others: four at least
template <uint32_t kOctets_, uint32_t kPerSm_, uint32_t kStages_>
struct ManyShape {
  static constexpr uint32_t kPerSm = kPerSm_;                       // blocks of an SM
  static constexpr uint32_t kWarps = 8, kThreads = kWarps * kWarp;  // that multiply
  static constexpr uint32_t kOctets = kOctets_, kRows = kOctets * kOctet;
  static constexpr uint32_t kWeightRows = kWarps * 16, kTiles = kWeightRows / kTileRows;
  static constexpr bool kWarpGroups = kOctets > 1;  // multiply together
  /// What a warp has of some columns: rows of weights l / 4 and 8 more, by two rows of each octet.
  using Sums = float4[kOctets];

  // A stage in shared memory: a part, 256 columns, of all that the block multiplies.
  static constexpr uint32_t kStages = kStages_;
  static constexpr uint32_t kOctetStageBytes = kPartGroups / 2 * kOctetPairBytes;
  static constexpr uint32_t kOctetsAt = kTiles * kPartBytes;
  static constexpr uint32_t kStageBytes = kOctetsAt + kOctets * kOctetStageBytes;
  static_assert(kStageBytes % 128 == 0);
  /// Sums of 512 columns and of all, of each thread.
  static constexpr uint32_t kLevelBytes = kThreads * sizeof(Sums);
  static constexpr uint32_t kSharedBytes = kStages * kStageBytes + 2 * kLevelBytes;
  /// Left for the last block, of each 1,024 columns.
  static constexpr uint32_t kPartialBytes = kLevelBytes;
};
using WideShape = ManyShape<8, 1, 3>;
using NarrowShape = ManyShape<1, 2, 4>;
static_assert(WideShape::kSharedBytes <= (size_t{226} << 10) &&
              2 * NarrowShape::kSharedBytes <= (size_t{226} << 10));

/// Where a block has an SM for itself, those who multiply take registers of those who copy: of 384 times 168, which both then
/// have as 256 times 232 and 128 times 40.
template <class Shape, bool kMultiplies>
__device__ void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(Shape::kPerSm != 1 || (Shape::kThreads == 256 && kCopyWarps == 4));
  if constexpr (Shape::kPerSm == 1) {
    if constexpr (kMultiplies) {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    } else {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    }
  }
#endif
}

__device__ inline float4 added(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/// a b + c: a of 16 x 16 by rows, b of 16 x 8 by columns, both of f16.
__device__ inline float4 multiply_codes(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float4 c) {
  float4 d;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, "
      "%11, %12, %13};"
      : "=f"(d.x), "=f"(d.y), "=f"(d.z), "=f"(d.w)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c.x), "f"(c.y), "f"(c.z), "f"(c.w));
  return d;
}

/// This lane's codes of a row's group, and of one eight rows further.
struct GroupCodes {
  uint2 words[2];

  __device__ void load(const std::byte* stage, uint32_t row, uint32_t g) {
    const uint32_t quad = threadIdx.x % 4;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h)
      words[h] = *reinterpret_cast<const uint2*>(stage + (row / kTileRows + h * 2) * kPartBytes +
                                                 tile_piece_offset(row % kTileRows, g * 2 + quad / 2) +
                                                 quad % 2 * 8);
  }
  /// As multiplications take them.
  __device__ void expand(uint32_t (&codes)[kGroupSteps][4]) const {
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
#pragma unroll
      for (uint32_t k = 0; k < 2; ++k) {
        const uint32_t word = k == 0 ? words[h].x : words[h].y;
        codes[2 * k][h] = word & 0x000F000Fu;
        codes[2 * k][h + 2] = word & 0x00F000F0u;
        codes[2 * k + 1][h] = word >> 8 & 0x000F000Fu;
        codes[2 * k + 1][h + 2] = word >> 8 & 0x00F000F0u;
      }
    }
  }
};

/// Scales and biases of a row's pair of groups.
struct PairScales {
  float2 scale, bias;

  __device__ static PairScales load(const std::byte* stage, uint32_t row, uint32_t pair) {
    const auto words = *reinterpret_cast<const uint2*>(stage + row / kTileRows * kPartBytes +
                                                       tile_scale_offset(row % kTileRows, pair * 2));
    return {{bf16_low(words.x), bf16_low(words.y)}, {bf16_high(words.x), bf16_high(words.y)}};
  }
  /// What group 0 begins, and group 1 ends. `d`: the sum of products; `sum`: of activations.
  __device__ float begin(float d, float sum) const { return __fmaf_rn(scale.x, d, bias.x * sum); }
  __device__ float end(float begun, float d, float sum) const {
    return __fmaf_rn(scale.y, d, __fmaf_rn(bias.y, sum, begun));
  }
  /// Group g of a stage, of two rows by two of an octet. `x`: what octet_values() gives of these, `d`: sums of products, `begun`:
  /// by the pair's group 0, `sums`: of pairs so far.
  __device__ static void take(const PairScales (&rows)[2], uint32_t g, float4 d, float4 x, float4& begun,
                              float4& sums) {
    if (g % 2 == 0) {
      begun = make_float4(rows[0].begin(d.x, x.x), rows[0].begin(d.y, x.y), rows[1].begin(d.z, x.x),
                          rows[1].begin(d.w, x.y));
      return;
    }
    const float4 p = make_float4(rows[0].end(begun.x, d.x, x.y), rows[0].end(begun.y, d.y, x.w),
                                 rows[1].end(begun.z, d.z, x.y), rows[1].end(begun.w, d.w, x.w));
    sums = make_float4(__fmaf_rn(x.x, p.x, sums.x), __fmaf_rn(x.z, p.y, sums.y), __fmaf_rn(x.x, p.z, sums.z),
                       __fmaf_rn(x.z, p.w, sums.w));
  }
};

/// Of this lane's two rows of an octet: their sums of a pair's group 0, or scale and sum of group 1 of either. `pair`: in a stage.
__device__ inline float4 octet_values(const std::byte* pair, uint32_t g) {
  const uint32_t quad = threadIdx.x % 4;
  if (g % 2 != 0) return reinterpret_cast<const float4*>(pair + kOctetScales)[quad];
  const float2 sums = reinterpret_cast<const float2*>(pair + kOctetSums)[quad];
  return make_float4(sums.x, sums.y, 0, 0);
}

/// What a block takes from the list of work: rows of weights, of activations, and some of the columns.
template <class Shape, Ending kEnding>
struct ManyItem {
  uint32_t block, first_row, octets, begin, end;  // stages [begin, end)
  BlockWork<kEnding> work;

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
    begin = split * p.chunks / p.splits * kTileParts;
    end = (split + 1) * p.chunks / p.splits * kTileParts;
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
        empty(shared_address(barriers + Shape::kStages)) {
    // Kept, not found out again for each stage.
    asm volatile("" : "+r"(this->memory), "+r"(full), "+r"(empty));
  }
  /// By one thread.
  __device__ void init() const {
    for (uint32_t i = 0; i < Shape::kStages; ++i) {
      init_barrier(full + i * 8, kCopyWarps * kWarp + 1);
      init_barrier(empty + i * 8, Shape::kWarps);
    }
    fence_barriers();
  }
  /// The n-th stage, of all that the block has.
  __device__ static uint32_t slot(uint32_t n) { return n % Shape::kStages; }
  __device__ uint32_t address(uint32_t n) const { return memory + slot(n) * Shape::kStageBytes; }
  __device__ static uint32_t parity(uint32_t n) { return n / Shape::kStages % 2; }
  __device__ void await_full(uint32_t n) const { await(full + slot(n) * 8, parity(n)); }
  __device__ void await_empty(uint32_t n) const {
    if (n >= Shape::kStages) await(empty + slot(n) * 8, parity(n) ^ 1);
  }
  /// By a warp that has read it.
  __device__ void release(uint32_t n) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) arrive(empty + slot(n) * 8);
  }

  /// Weights of a stage, by the warps that copy: each eight tiles, four lanes a tile. `tile`: this lane's, null: there is none.
  __device__ void copy_weights(uint32_t n, uint32_t stage, const std::byte* tile,
                               const std::byte* some) const {
    static_assert(Shape::kTiles == kCopyWarps * kWarp / 4 && kPartBytes % 64 == 0);
    const uint32_t to = address(n) + tile_of_lane() * kPartBytes + threadIdx.x % 4 * 16;
    const std::byte* from = tile == nullptr ? some : tile + size_t{stage} * kPartBytes + threadIdx.x % 4 * 16;
    const uint32_t bytes = tile == nullptr ? 0 : 16;  // zeros in their place
#pragma unroll
    for (uint32_t i = 0; i < kPartBytes; i += 64)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + i), "l"(from + i), "r"(bytes)
                   : "memory");
  }
  __device__ static uint32_t tile_of_lane() { return (threadIdx.x - Shape::kThreads) / 4; }
  /// Its activations, of `octets`.
  __device__ void copy_octets(uint32_t n, const std::byte* from, size_t octet_bytes, uint32_t octets) const {
    const uint32_t lane = threadIdx.x - Shape::kThreads, barrier = full + slot(n) * 8;
    if (lane == 0) expect_bytes(barrier, octets * Shape::kOctetStageBytes);
    __syncwarp();
    if (lane < octets)
      bulk_copy(address(n) + Shape::kOctetsAt + lane * Shape::kOctetStageBytes, from + lane * octet_bytes,
                Shape::kOctetStageBytes, barrier);
  }
  /// It is full when its activations have come, and all weights that the warps asked for before.
  __device__ void end_copies(uint32_t n) const { arrive_after_copies(full + slot(n) * 8); }
};

}  // namespace refrain::ops::decode
