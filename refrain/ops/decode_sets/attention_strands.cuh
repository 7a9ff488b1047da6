// Attention over a paged cache in 64 strands: what the set of a layer's attention and the kernel for any rows share.
//
// Numerics class `fast, f32, 64 strands of 8 positions`: strand s has the chunks of 8 positions c = s, s + 64, ..., in which
// it keeps a running maximum, sum and weighted values, positions ascending; strands join at the end. A row and a key-value
// head with its queries belong to a cluster of 8 blocks of 8 warps: strand s to warp s / 8 of block s % 8. Each block joins
// a slice of the head's dimensions. Nothing in this depends on what other rows there are.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>
#include <bit>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops::decode {

using namespace backend::cuda;

inline constexpr uint32_t kCluster = 8;  // blocks of a key-value head
inline constexpr uint32_t kAttentionWarps = 8, kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr uint32_t kChunk = 8;  // positions
inline constexpr uint32_t kStrands = kCluster * kAttentionWarps;
static_assert(kPagePositions % kChunk == 0);

struct AttentionStrands {
  CommandState state;
  const float* query = nullptr;  // [rows, heads, D]; of a set before norm and rope
  const float* key = nullptr;    // of a set: [kv_heads, D], the same
  const float* value = nullptr;  // of a set: [kv_heads, D]
  const float* query_gain = nullptr;
  const float* key_gain = nullptr;
  const float* frequencies = nullptr;  // of a set: [D / 2]
  const StepRow* rows = nullptr;
  PageTable table;
  float* cache = nullptr;
  uint32_t* status = nullptr;
  float* output = nullptr;  // [rows, heads, D]
  uint32_t kv_heads = 0;
  uint32_t pages = 0;
  uint32_t window = 0;
  float query_eps = 0, key_eps = 0;
  float scale = 1;  // of the scores, and log2(e): weights are powers of two
};

/// Reads what kernels before have written, or this one's own cache: never through the non-coherent path.
__device__ inline float4 load_cached(const float* from) {
  return __ldcg(reinterpret_cast<const float4*>(from));
}

/// Lane l has elements l, l + 32, ... of a head: the partner of a rope pair is its own.
template <uint32_t kDim>
struct Head {
  static constexpr uint32_t kCount = kDim / kWarp;
  float e[kCount];

  __device__ void load(const float* from) {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) e[i] = __ldcg(from + threadIdx.x % kWarp + i * kWarp);
  }
  __device__ void load_sealed(const float* from) {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) e[i] = __ldg(from + threadIdx.x % kWarp + i * kWarp);
  }
  __device__ void store(float* to) const {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) to[threadIdx.x % kWarp + i * kWarp] = e[i];
  }
  __device__ void normalize(const Head& gain, float eps) {
    // In the order of the kernel of rms_norm: 32 neighbours, then these in halves.
    float sums[kCount];
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) sums[i] = warp_sum(e[i] * e[i]);
#pragma unroll
    for (uint32_t half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
      for (uint32_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sums[0], static_cast<float>(kDim)) + eps));
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) e[i] = e[i] * factor * gain.e[i];
  }
  __device__ void rotate(const float* cosines, const float* sines) {
#pragma unroll
    for (uint32_t i = 0; i < kCount / 2; ++i) {
      const uint32_t pair = threadIdx.x % kWarp + i * kWarp;
      const float x = e[i], y = e[i + kCount / 2];
      e[i] = x * cosines[pair] - y * sines[pair];
      e[i + kCount / 2] = y * cosines[pair] + x * sines[pair];
    }
  }
};

/// Keys and values of a chunk as the lanes of a warp hold them: of keys lane l has a quarter of position l / 4; of values
/// four columns of all positions, or of every second where a head has 64.
template <uint32_t kDim>
struct Chunk {
  static constexpr uint32_t kKeyQuads = kDim / 16;
  static constexpr uint32_t kColumns = kDim / 4;  // lanes of a position
  static constexpr uint32_t kAtOnce = kWarp / kColumns;
  static constexpr uint32_t kValues = kChunk / kAtOnce;
  static_assert(kAtOnce * kColumns == kWarp);
  float4 keys[kKeyQuads];
  float4 values[kValues];

  __device__ static uint32_t key_position() { return threadIdx.x % kWarp / 4; }
  __device__ static uint32_t key_quad(uint32_t i) { return threadIdx.x % 4 + 4 * i; }
  __device__ static uint32_t value_position(uint32_t i) {
    return i * kAtOnce + threadIdx.x % kWarp / kColumns;
  }
  __device__ static uint32_t value_quad() { return threadIdx.x % kColumns; }

  /// Of positions from `from` on, of which the chunk has `count`.
  __device__ void load_keys(const float* from, uint32_t count) {
#pragma unroll
    for (uint32_t i = 0; i < kKeyQuads; ++i)
      keys[i] = key_position() < count ? load_cached(from + key_position() * kDim + 4 * key_quad(i))
                                       : make_float4(0, 0, 0, 0);
  }
  __device__ void load_values(const float* from, uint32_t count) {
#pragma unroll
    for (uint32_t i = 0; i < kValues; ++i)
      values[i] = value_position(i) < count ? load_cached(from + value_position(i) * kDim + 4 * value_quad())
                                            : make_float4(0, 0, 0, 0);
  }
  /// One position's, from shared memory.
  __device__ void replace(uint32_t position, const float* key, const float* value) {
    if (key_position() == position) {
#pragma unroll
      for (uint32_t i = 0; i < kKeyQuads; ++i) keys[i] = reinterpret_cast<const float4*>(key)[key_quad(i)];
    }
#pragma unroll
    for (uint32_t i = 0; i < kValues; ++i) {
      if (value_position(i) == position) values[i] = reinterpret_cast<const float4*>(value)[value_quad()];
    }
  }
};

__device__ inline float4 scaled(float4 v, float f) { return make_float4(v.x * f, v.y * f, v.z * f, v.w * f); }
__device__ inline float4 fused(float w, float4 v, float4 sum) {
  return make_float4(__fmaf_rn(w, v.x, sum.x), __fmaf_rn(w, v.y, sum.y), __fmaf_rn(w, v.z, sum.z),
                     __fmaf_rn(w, v.w, sum.w));
}
__device__ inline float dot_of(float4 a, float4 b, float sum) {
  return __fmaf_rn(a.w, b.w, __fmaf_rn(a.z, b.z, __fmaf_rn(a.y, b.y, __fmaf_rn(a.x, b.x, sum))));
}

/// What a warp keeps of its strand.
template <uint32_t kDim, uint32_t kQueries>
struct Strand {
  float max[kQueries];
  float sum[kQueries];
  float4 values[kQueries];  // of this lane's columns, weighted, not divided

  __device__ Strand() {
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      max[q] = -INFINITY;
      sum[q] = 0;
      values[q] = make_float4(0, 0, 0, 0);
    }
  }

  /// Weights of the positions [begin, end) of the chunk into `weights`, shared memory of the warp.
  __device__ void weigh(const Chunk<kDim>& chunk, uint32_t begin, uint32_t end, const float (*queries)[kDim],
                        float (*weights)[kChunk]) {
    const uint32_t j = Chunk<kDim>::key_position();
    const bool seen = begin <= j && j < end;
    converge();
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      float score = 0;
#pragma unroll
      for (uint32_t i = 0; i < Chunk<kDim>::kKeyQuads; ++i)
        score = dot_of(reinterpret_cast<const float4*>(queries[q])[Chunk<kDim>::key_quad(i)], chunk.keys[i],
                       score);
      score += __shfl_xor_sync(~0u, score, 1);
      score += __shfl_xor_sync(~0u, score, 2);
      if (!seen) score = -INFINITY;
      float now = fmaxf(max[q], score);
      for (uint32_t half = 4; half < kWarp; half *= 2) now = fmaxf(now, __shfl_xor_sync(~0u, now, half));
      const float weight = exp2f(score - now), factor = exp2f(max[q] - now);
      float added = weight;
      for (uint32_t half = 4; half < kWarp; half *= 2) added += __shfl_xor_sync(~0u, added, half);
      sum[q] = __fmaf_rn(sum[q], factor, added);
      values[q] = scaled(values[q], factor);
      max[q] = now;
      if (threadIdx.x % 4 == 0) weights[q][j] = weight;
    }
  }
  __device__ void add(const Chunk<kDim>& chunk, const float (*weights)[kChunk]) {
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
#pragma unroll
      for (uint32_t i = 0; i < Chunk<kDim>::kValues; ++i)
        values[q] = fused(weights[q][Chunk<kDim>::value_position(i)], chunk.values[i], values[q]);
    }
  }
};

/// Of each strand what one block joins: a slice of the head's dimensions.
template <uint32_t kDim, uint32_t kQueries>
struct Parts {
  static constexpr uint32_t kSlice = kDim / kCluster;
  float2 sums[kStrands][kQueries];  // greatest score, sum of weights
  float values[kStrands][kQueries][kSlice];
};

/// kSet: of one row, with norms, ropes and the write of key and value to the cache.
template <uint32_t kDim, uint32_t kQueries, bool kSet>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kAttentionThreads, kQueries <= 4 ? 2 : 1)
    attention_strands(const __grid_constant__ AttentionStrands p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  __shared__ __align__(16) float queries[kQueries][kDim];
  __shared__ __align__(16) float newest[2][kDim];  // key, value
  __shared__ float cosines[kDim / 2], sines[kDim / 2];
  __shared__ __align__(16) float weights[kAttentionWarps][kQueries][kChunk];
  __shared__ __align__(16) Parts<kDim, kQueries> parts;
  const auto cluster = cooperative_groups::this_cluster();
  const uint32_t rank = cluster.block_rank(), unit = blockIdx.x / kCluster;
  const uint32_t kv_head = unit % p.kv_heads, r = unit / p.kv_heads;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};

  StepRow row;
  const uint32_t* ids = nullptr;  // null: the row is idle or refused
  uint32_t bits = 0;              // for the status
  uint32_t first_position = 0, c = 0, last = 0;
  Chunk<kDim> chunk;
  const auto unit_of = [&](uint32_t kind, uint32_t at) {
    const uint32_t page = __ldcg(ids + at / (kPagePositions / kChunk));
    return p.cache + geometry.unit_offset(kind, page, kv_head) +
           at % (kPagePositions / kChunk) * kChunk * kDim;
  };
  // Positions of chunk `at` that the cache holds: of a set all but the newest, which it writes itself.
  const auto held = [&](uint32_t at) {
    const uint32_t end = row.position + (kSet ? 0 : 1) - at * kChunk;
    return end < kChunk ? end : kChunk;
  };
  const auto find_row = [&] {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(p.rows) + r);
    memcpy(&row, &words, sizeof(row));
    last = row.position / kPagePositions;
    const bool idle = row.slot == kIdle;
    if (!idle) {
      bits = row.slot >= p.table.slots        ? kSlotOutOfRange
             : last >= p.table.pages_per_slot ? kPositionOutOfRange
                                              : 0u;
    }
    const bool readable = !idle && bits == 0;
    first_position = p.window != 0 && row.position >= p.window ? row.position - p.window + 1 : 0;
    const uint32_t* pages = p.table.ids + (readable ? size_t{row.slot} * p.table.pages_per_slot : 0);
    bool missing = false;
    for (uint32_t page = first_position / kPagePositions + threadIdx.x; readable && page <= last;
         page += kAttentionThreads)
      missing = missing || __ldcg(pages + page) >= p.table.cache_pages;
    if (__syncthreads_or(missing) != 0) bits = kPageOutOfRange;
    converge();
    if (readable && bits == 0) ids = pages;
    last = row.position / kChunk;
    // The warp's first chunk: the first of its strand that is not before the window.
    const uint32_t first = first_position / kChunk, strand = warp * kCluster + rank;
    c = first + (strand - first) % kStrands;
  };
  const auto load_first = [&] {
    if (ids == nullptr || c > last) return;
    chunk.load_keys(unit_of(0, c), held(c));
    chunk.load_values(unit_of(1, c), held(c));
  };
  const auto find_angles = [&] {
    if (!kSet || threadIdx.x >= kDim / 2) return;
    double sine, cosine;
    sincos(static_cast<double>(static_cast<float>(row.position) * __ldg(p.frequencies + threadIdx.x)), &sine,
           &cosine);
    cosines[threadIdx.x] = static_cast<float>(cosine);
    sines[threadIdx.x] = static_cast<float>(sine);
  };
  // Vectors that the block prepares, a warp each: queries, and of a set where it has the newest chunk the key and the value.
  const auto vector_of = [&](uint32_t item) {
    if (item < kQueries) return p.query + (size_t{unit} * kQueries + item) * kDim;
    return (item == kQueries ? p.key : p.value) + size_t{kv_head} * kDim;
  };
  const auto load_gain = [&](Head<kDim>& gain, uint32_t item) {
    if (kSet && p.query_gain != nullptr && item <= kQueries)
      gain.load_sealed(item < kQueries ? p.query_gain : p.key_gain);
  };
  Head<kDim> head, gain;  // the warp's first vector
  const auto prepare = [&] {
    find_row();
    if constexpr (kSet) {
      load_first();
      find_angles();
    }
  };
  const bool ahead = p.state.ahead;
  const Running run(p.state, [&] {
    load_gain(gain, warp);
    if (ahead) prepare();
  });
  if (!ahead) prepare();
  const bool writes = kSet && last % kCluster == rank;
  const uint32_t items = kQueries + (writes ? 2u : 0u);
  if (warp < items) head.load(vector_of(warp));  // before anything is waited for: a plan has memory for it
  if (r >= run.rows) return;
  if (ids == nullptr) {
    constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
    for (uint32_t i = threadIdx.x; i < kQueries * kSlice; i += kAttentionThreads)
      p.output[(size_t{unit} * kQueries + i / kSlice) * kDim + rank * kSlice + i % kSlice] = 0;
    if (kv_head == 0 && rank == 0 && threadIdx.x == 0)
      raise_status(p.status, bits == kSlotOutOfRange ? p.table.slots : row.slot, bits);
    return;
  }
  // That all blocks of it have begun is waited for below; nothing has to be seen by then.
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  if constexpr (!kSet) load_first();

  if constexpr (kSet) __syncthreads();  // the angles
  for (uint32_t item = warp; item < items; item += kAttentionWarps) {
    if (item != warp) {
      head.load(vector_of(item));
      load_gain(gain, item);
    }
    if (kSet && item <= kQueries) {
      if (p.query_gain != nullptr) head.normalize(gain, item < kQueries ? p.query_eps : p.key_eps);
      head.rotate(cosines, sines);
    }
    if (item < kQueries) {
#pragma unroll
      for (float& e : head.e) e *= p.scale;
      head.store(queries[item]);
      continue;
    }
    const uint32_t kind = item - kQueries;  // 0: key, 1: value
    head.store(newest[kind]);
    head.store(p.cache + geometry.unit_offset(kind, __ldcg(ids + row.position / kPagePositions), kv_head) +
               row.position % kPagePositions * kDim);
  }
  __syncthreads();

  Strand<kDim, kQueries> strand;
  const bool any = c <= last;
  for (; c <= last; c += kStrands) {
    if (kSet && c == last) chunk.replace(row.position % kChunk, newest[0], newest[1]);
    const uint32_t at = c * kChunk;
    strand.weigh(chunk, at < first_position ? first_position - at : 0, row.position + 1 - at, queries,
                 weights[warp]);
    const uint32_t next = c + kStrands;
    const bool more = next <= last;
    if (more) chunk.load_keys(unit_of(0, next), held(next));
    __syncwarp();
    strand.add(chunk, weights[warp]);
    if (more) chunk.load_values(unit_of(1, next), held(next));
    __syncwarp();
  }
  asm volatile("barrier.cluster.wait;" ::: "memory");
  converge();
  if (any) {
    const uint32_t to = warp * kCluster + rank;
    constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      float4 v = strand.values[q];
      if constexpr (Chunk<kDim>::kAtOnce == 2) {
        v = make_float4(v.x + __shfl_xor_sync(~0u, v.x, 16), v.y + __shfl_xor_sync(~0u, v.y, 16),
                        v.z + __shfl_xor_sync(~0u, v.z, 16), v.w + __shfl_xor_sync(~0u, v.w, 16));
      }
      const uint32_t column = 4 * Chunk<kDim>::value_quad();
      if (lane < Chunk<kDim>::kColumns) {
        auto* other = cluster.map_shared_rank(&parts, column / kSlice);
        *reinterpret_cast<float4*>(&other->values[to][q][column % kSlice]) = v;
      }
      if (lane < kCluster)
        cluster.map_shared_rank(&parts, lane)->sums[to][q] = make_float2(strand.max[q], strand.sum[q]);
    }
  }
  cluster.sync();

  // Threads of one output follow each other, a power of two; thread t of them has strands t, t + kEach, ...
  constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
  constexpr uint32_t kOutputs = kQueries * kSlice;
  constexpr uint32_t kEach = std::min(std::bit_floor(kAttentionThreads / kOutputs), kWarp);
  const uint32_t output = min(threadIdx.x / kEach, kOutputs - 1), q = output / kSlice, d = output % kSlice;
  const uint32_t first_chunk = first_position / kChunk, chunks = last - first_chunk + 1;
  const auto used = [&](uint32_t s) { return (s - first_chunk) % kStrands < chunks; };
  converge();
  float max = -INFINITY;
  for (uint32_t s = threadIdx.x % kEach; s < kStrands; s += kEach) {
    if (used(s)) max = fmaxf(max, parts.sums[s][q].x);
  }
  converge();
  for (uint32_t half = kEach / 2; half > 0; half /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, half));
  float sum = 0, total = 0;
  for (uint32_t s = threadIdx.x % kEach; s < kStrands; s += kEach) {
    if (!used(s)) continue;
    const float factor = exp2f(parts.sums[s][q].x - max);
    sum = __fmaf_rn(factor, parts.values[s][q][d], sum);
    total = __fmaf_rn(factor, parts.sums[s][q].y, total);
  }
  converge();
  for (uint32_t half = kEach / 2; half > 0; half /= 2) {
    sum += __shfl_xor_sync(~0u, sum, half);
    total += __shfl_xor_sync(~0u, total, half);
  }
  if (threadIdx.x % kEach == 0 && threadIdx.x < kOutputs * kEach)
    p.output[(size_t{unit} * kQueries + q) * kDim + rank * kSlice + d] = __fdiv_rn(sum, total);
#endif
}

}  // namespace refrain::ops::decode
