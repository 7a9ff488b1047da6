// Attention by strands for many rows, in the numerics class of strand.cuh and with the bits of attention_strands.
//
// A cluster takes a group of rows and a key-value head, block `rank` of it that rank's strands. Queries of neighbouring rows
// of one slot are the columns of a *tile*, eight of them. In rounds a block takes
//   - the tiles of one run of rows, a warp each: the warps are a *team*, and each chunk that comes to shared memory serves all;
//   - or tiles of runs too short for that, a warp each, which reads its chunks alone;
//   - or a tile of such a run that looks at much, all warps: *spread*, a strand a warp, as in attention_strands.
// Where a warp has all strands of a rank it walks them twice: they are joined by their greatest score, which the first walk
// finds from keys alone, so that the second can join strand after strand and hold the values of one.
//
// A column's bits are those that it would have alone. In products columns do not meet: what a column of a score or value
// gets is from its own column and from the other operand, keys or values. So a chunk that all columns see whole is one
// product for them. Of another a product is made for those columns that see the same positions, with the values of all
// other positions cleared as attention_strands clears them, and kept in these columns alone. Weights of zero would not do
// in place of that: zero by infinity is not zero.
#pragma once

#include <cstddef>

#include "refrain/ops/decode_sets/strand_chunks.cuh"
#include "refrain/ops/decode_sets/strand_parts.cuh"

namespace refrain::ops::decode {

inline constexpr uint32_t kProductColumns = 8;
inline constexpr uint32_t kMostColumns = kAttentionWarps * kProductColumns;
inline constexpr uint32_t kMostGroupRows = kMostColumns;  // of one query each
inline constexpr uint32_t kTeamTiles = 3;                 // fewer are no team
inline constexpr uint32_t kDeep = kStrands * kChunk;      // positions: such tiles of no team are spread
inline constexpr uint32_t kFewRows = 64;        // that attention_strands is left with: often of as many slots
inline constexpr uint32_t kNotKept = 1u << 31;  // of a column: it only fills a tile

/// Rows of a group: as many as fill the warps of a block when they are of one slot, or fewer where that would leave much of a
/// GPU idle, but still a warp each when they are not.
constexpr uint32_t group_rows(uint32_t rows, uint32_t kv_heads, uint32_t queries) {
  constexpr uint32_t kEnoughBlocks = 256;
  uint32_t group = kMostColumns / queries;
  while (group > kAttentionWarps && (rows + group - 1) / group * kv_heads * kCluster < kEnoughBlocks)
    group = group / 2 > kAttentionWarps ? group / 2 : kAttentionWarps;
  return group;
}

/// What a block keeps in shared memory.
template <uint32_t kDim>
struct ManyShared {
  static constexpr uint32_t kStride = kDim + 4;  // of a tile's columns, so that lanes meet no bank twice
  static constexpr uint32_t kTileFloats = kProductColumns * kStride;

  union {
    alignas(16) SharedChunk<kDim> chunks[kAttentionWarps];
    alignas(16) Parts<kDim, kMostColumns> parts;  // once no chunk is read any more
  };
  alignas(16) float tiles[kAttentionWarps][kTileFloats];  // a warp's own
  struct {
    uint32_t slot, position, first_position;  // slot: kIdle where the row is idle or refused
  } rows[kMostGroupRows];
  float2 sums[kAttentionWarps][kProductColumns];  // of a tile that is spread, by strands
  uint32_t columns[kMostColumns];                 // vectors of query and output, or kNotKept and another
  PhaseBarrier full[kAttentionWarps], empty[kAttentionWarps];
  uint64_t arrived;
};

static_assert(sizeof(ManyShared<128>) <= 113 * 1024, "two blocks of an SM");

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

  /// `columns`: of the tile, vectors of `from`. `memory`: the warp's own.
  __device__ void load_queries(const float* from, const uint32_t* columns, float* memory) {
    constexpr uint32_t kStride = ManyShared<kDim>::kStride;
    const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
    for (uint32_t column = 0; column < kProductColumns; ++column) {
      Head<kDim> head;
      head.load(from + size_t{columns[column] & ~kNotKept} * kDim);
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

  /// Takes the rank's values from `memory`, where join() has them.
  __device__ void take_joined(const float* memory) {
#pragma unroll
    for (uint32_t b = 0; b < kBlocks; ++b) {
      const float4 v = any ? reinterpret_cast<const float4*>(memory)[b * kWarp + threadIdx.x % kWarp]
                           : make_float4(0, 0, 0, 0);
      values[b][0] = v.x, values[b][1] = v.y, values[b][2] = v.z, values[b][3] = v.w;
    }
  }

  /// Leaves the values in `memory` as [column][kStride].
  __device__ void lay_out(float* memory) const {
    constexpr uint32_t kStride = ManyShared<kDim>::kStride;
    const uint32_t lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
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
