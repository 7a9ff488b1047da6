// Attention by strands for many rows, in the numerics class of strand.cuh and with the bits of attention_strands.
//
// A cluster takes a group of rows and a key-value head, block `rank` of it that rank's strands, and a warp a *tile*: up to eight
// columns, queries of neighbouring rows of one slot. A strand's chunks go through shared memory; where the tiles are of one run of
// rows, their warps are a *team* and each chunk serves all of them. Chunks are walked twice: what eight strands have in common
// is joined by their greatest score, which the first walk finds from keys alone, so that the second can join strand after
// strand and hold the values of one.
//
// A column's bits are those that it would have alone. In products columns do not meet: what a column of a score or value gets
// is from its own column of the right operand and from the left one, which is keys or values. So a chunk that all columns see whole is
// one product for them; of another the products are made for the columns that see the same positions, with the values of all others
// cleared as attention_strands clears them, and kept in no other column. That weights of zero would do instead is not said: zero by
// infinity is not zero.
#pragma once

#include <cstddef>

#include "refrain/ops/decode_sets/strand_parts.cuh"

namespace refrain::ops::decode {

inline constexpr uint32_t kProductColumns = 8;
inline constexpr uint32_t kMostColumns = kAttentionWarps * kProductColumns;
inline constexpr uint32_t kMostGroupRows = kMostColumns;  // of one query each
inline constexpr uint32_t kTeamTiles = 3;                 // of fewer each warp reads for itself
inline constexpr uint32_t kFewRows = 8;                   // that attention_strands is left with
inline constexpr uint32_t kNoColumn = ~0u;

/// Rows of a group: as many as fill the warps of a block, fewer where that left most of a GPU idle.
constexpr uint32_t group_rows(uint32_t rows, uint32_t kv_heads, uint32_t queries) {
  constexpr uint32_t kEnoughBlocks = 132;
  uint32_t group = kMostColumns / queries;
  while (group * queries > kProductColumns &&
         (rows + group - 1) / group * kv_heads * kCluster < kEnoughBlocks)
    group /= 2;
  return group;
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// A barrier in shared memory that a number of arrivals ends a phase of.
struct PhaseBarrier {
  uint64_t word;

  __device__ void begin(uint32_t arrivals, bool again) {
    if (again) asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(&word)) : "memory");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&word)), "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&word)) : "memory");
  }
  /// Arrives once the copies that this thread has begun are there.
  __device__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&word))
                 : "memory");
  }
  __device__ void wait(uint32_t phase) {
    asm volatile(
        "{\n .reg .pred done;\n WAIT_%=:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @!done "
        "bra WAIT_%=;\n}" ::"r"(shared_address(&word)),
        "r"(phase & 1)
        : "memory");
  }
};

/// A chunk in shared memory, padded so that the lanes of a load meet no bank twice.
template <uint32_t kDim>
struct SharedChunk {
  __half keys[kChunk][kDim + 32];
  __half values[kChunk][kDim + 8];

  /// Of one kind, by a warp. `from`: [kChunk][kDim].
  template <uint32_t kStride>
  __device__ static void copy(__half (&to)[kChunk][kStride], const __half* from) {
    constexpr uint32_t kPieces = kDim / 8;  // 16 bytes each
#pragma unroll
    for (uint32_t i = 0; i < kChunk * kPieces / kWarp; ++i) {
      const uint32_t piece = i * kWarp + threadIdx.x % kWarp;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       shared_address(&to[piece / kPieces][piece % kPieces * 8])),
                   "l"(from + piece * 8)
                   : "memory");
    }
  }
  /// The left operand of the product for the values of 16 columns: lane (g, t) gets of columns g and 8 + g positions 2 t and 2 t + 1,
  /// then 8 + 2 t and 9 + 2 t.
  __device__ void load_values(uint32_t column, uint32_t (&a)[4]) const {
    const uint32_t lane = threadIdx.x % kWarp;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(&values[lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]))
                 : "memory");
  }
};

/// The chunks of a rank within [first, last], strand after strand; and again from the first one.
struct RankChunks {
  uint32_t first, last, rank;
  uint32_t warp = 0, chunk = 0;  // of the strand, as attention_strands has it

  __device__ uint32_t count() const {
    const uint32_t begin = first + (rank - first) % kCluster;
    return begin > last ? 0 : (last - begin) / kCluster + 1;
  }
  /// Where there is one.
  __device__ void begin() {
    warp = 0;
    chunk = of_strand();
    settle();
  }
  __device__ void next() {
    chunk += kStrands;
    settle();
  }
  __device__ bool ends_strand() const { return chunk + kStrands > last; }

 private:
  __device__ uint32_t of_strand() const { return first + (warp * kCluster + rank - first) % kStrands; }
  __device__ void settle() {
    while (chunk > last) {
      warp = (warp + 1) % kAttentionWarps;
      chunk = of_strand();
    }
  }
};

/// What a block keeps in shared memory.
template <uint32_t kDim>
struct ManyShared {
  static constexpr uint32_t kStride = kDim + 4;  // of a tile's columns, so that lanes meet no bank twice

  union {
    alignas(16) SharedChunk<kDim> chunks[kAttentionWarps];
    alignas(16) Parts<kDim, kMostColumns> parts;  // once no chunk is read any more
  };
  alignas(16) float tiles[kAttentionWarps][kProductColumns * kStride];  // a warp's own
  struct {
    uint32_t slot, position, first_position;  // slot: kIdle where the row is idle or refused
  } rows[kMostGroupRows];
  uint32_t columns[kMostColumns];  // the vectors of query and output; kNoColumn: none
  PhaseBarrier full[kAttentionWarps], empty[kAttentionWarps];
  uint64_t arrived;
};

/// What a warp keeps of its tile: of column g for scores, of columns 2 t and 2 t + 1 of values.
template <uint32_t kDim>
struct Tile {
  static constexpr uint32_t kBlocks = kDim / 16;
  uint4 high[kDim / 32], low[kDim / 32];  // of the query of column g, as Queries has it
  float values[kBlocks][4] = {};          // dimensions 16 b + g, then 16 b + 8 + g
  Softmax softmax;
  float greatest = -INFINITY;  // of the rank: until the first walk has ended, of this lane
  float sum = 0;               // of the rank
  bool any = false;            // has joined a strand

  /// `vector`: of column g, in `from`. `memory`: the warp's own.
  __device__ void load_queries(const float* from, uint32_t vector, float* memory) {
    constexpr uint32_t kStride = ManyShared<kDim>::kStride;
    const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
    for (uint32_t column = 0; column < kProductColumns; ++column) {
      Head<kDim> head;
      head.load(from + size_t{__shfl_sync(~0u, vector, column * 4)} * kDim);
#pragma unroll
      for (uint32_t i = 0; i < head.kCount; ++i) memory[column * kStride + lane + i * kWarp] = head.e[i];
    }
    __syncwarp();
#pragma unroll
    for (uint32_t j = 0; j < kDim / 32; ++j) {
      const auto* at = reinterpret_cast<const float4*>(memory + lane / 4 * kStride + 32 * j + 8 * (lane % 4));
      const float4 a = at[0], b = at[1];
      const Halves h[4] = {{a.x, a.y}, {a.z, a.w}, {b.x, b.y}, {b.z, b.w}};
      high[j] = make_uint4(h[0].high, h[1].high, h[2].high, h[3].high);
      low[j] = make_uint4(h[0].low, h[1].low, h[2].low, h[3].low);
    }
    __syncwarp();
  }

  __device__ void score(const SharedChunk<kDim>& chunk, float scale, uint32_t begin, uint32_t end,
                        float (&scores)[2][2]) const {
    const uint32_t g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    float products[2][4] = {};
    converge();
#pragma unroll
    for (uint32_t j = 0; j < kDim / 32; ++j) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i)
        multiply(products[i], high[j], low[j],
                 *reinterpret_cast<const uint4*>(&chunk.keys[8 * i + g][32 * j + 8 * t]));
    }
    Softmax::score(products, scale, begin, end, scores);
  }

  /// Of the chunk column g looks at [begin, end), or at nothing. `looking`: the lanes of those that look at something.
  __device__ void add(const SharedChunk<kDim>& chunk, float scale, uint32_t begin, uint32_t end,
                      uint32_t looking) {
    const uint32_t lane = threadIdx.x % kWarp, t = lane % 4;
    const bool looks = begin < end;
    float scores[2][2];
    score(chunk, scale, begin, end, scores);
    const Softmax before = softmax;
    float factor = softmax.take(scores);
    if (!looks) {
      softmax = before;
      factor = 1;
    }
    const float2 factors = of_queries(factor);
#pragma unroll
    for (auto& block : values) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) block[i] *= i % 2 == 0 ? factors.x : factors.y;
    }
    const Weights weights{Halves(scores[0][0], scores[0][1]), Halves(scores[1][0], scores[1][1])};
    if (__all_sync(~0u, begin == 0 && end == kChunk)) {
#pragma unroll
      for (uint32_t b = 0; b < kBlocks; ++b) {
        uint32_t a[4];
        chunk.load_values(16 * b, a);
        multiply(values[b], a[0], a[1], a[2], a[3], weights.first.low, weights.second.low);
        multiply(values[b], a[0], a[1], a[2], a[3], weights.first.high, weights.second.high);
      }
      return;
    }
    while (looking != 0) {
      const uint32_t from = __ffs(static_cast<int>(looking)) - 1;
      const uint32_t of_begin = __shfl_sync(~0u, begin, from), of_end = __shfl_sync(~0u, end, from);
      const uint32_t alike = __ballot_sync(~0u, looks && begin == of_begin && end == of_end);
      looking &= ~alike;
      const bool even = (alike >> (8 * t) & 1) != 0, odd = (alike >> (8 * t + 4) & 1) != 0;
      const auto seen = [&](uint32_t position) {  // and the next one
        return (of_begin <= position && position < of_end ? 0xFFFFu : 0u) |
               (of_begin <= position + 1 && position + 1 < of_end ? 0xFFFF0000u : 0u);
      };
      const uint32_t near = seen(2 * t), far = seen(8 + 2 * t);
#pragma unroll
      for (uint32_t b = 0; b < kBlocks; ++b) {
        uint32_t a[4];
        chunk.load_values(16 * b, a);
        float sums[4] = {values[b][0], values[b][1], values[b][2], values[b][3]};
        multiply(sums, a[0] & near, a[1] & near, a[2] & far, a[3] & far, weights.first.low,
                 weights.second.low);
        multiply(sums, a[0] & near, a[1] & near, a[2] & far, a[3] & far, weights.first.high,
                 weights.second.high);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) values[b][i] = (i % 2 == 0 ? even : odd) ? sums[i] : values[b][i];
      }
    }
  }

  /// The strand has ended: joins it to those of the rank before it, which are in `memory`, the warp's own.
  __device__ void join(float* memory) {
    softmax.finish();
    const float factor = exp2f(softmax.max - (greatest == -INFINITY ? 0 : greatest));
    sum = joined(factor, softmax.sum, sum);
    const float2 factors = of_queries(factor);
    if (__any_sync(~0u, factor != 0)) {
#pragma unroll
      for (uint32_t b = 0; b < kBlocks; ++b) {
        float4& to = reinterpret_cast<float4*>(memory)[b * kWarp + threadIdx.x % kWarp];
        const float4 of = any ? to : make_float4(0, 0, 0, 0);
        to = make_float4(joined(factors.x, values[b][0], of.x), joined(factors.y, values[b][1], of.y),
                         joined(factors.x, values[b][2], of.z), joined(factors.y, values[b][3], of.w));
      }
      any = true;
    }
    softmax = {};
#pragma unroll
    for (auto& block : values) block[0] = block[1] = block[2] = block[3] = 0;
  }

  /// Leaves the rank's values in `memory` as [column][kStride].
  __device__ void lay_out(float* memory) {
    constexpr uint32_t kStride = ManyShared<kDim>::kStride;
    const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t b = 0; b < kBlocks; ++b) {
      const float4 v =
          any ? reinterpret_cast<const float4*>(memory)[b * kWarp + lane] : make_float4(0, 0, 0, 0);
      values[b][0] = v.x, values[b][1] = v.y, values[b][2] = v.z, values[b][3] = v.w;
    }
    __syncwarp();
#pragma unroll
    for (uint32_t b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        memory[(2 * t + i % 2) * kStride + 16 * b + i / 2 * 8 + g] = values[b][i];
    }
    __syncwarp();
  }
};

}  // namespace refrain::ops::decode
