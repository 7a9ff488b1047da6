// What blocks of product_many take from memory, and how it comes to shared memory.
#pragma once

#include "refrain/ops/decode_sets/product_octets.cuh"

namespace refrain::ops::decode {

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
    fence_barriers();
  }
  /// The n-th stage, of all that the block has.
  __device__ static uint32_t slot(uint32_t n) { return n % Shape::kStages; }
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
    arrive_after_copies(barrier);
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

}  // namespace refrain::ops::decode
