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
inline constexpr uint32_t kMostStages = 2;
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
  uint32_t stages = 1;  // chunks of keys and values that a warp has on their way
  float query_eps = 0, key_eps = 0;
  float scale = 1;  // of the scores, and log2(e): weights are powers of two
};

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
    // In the order of rms_norm_tiles: neighbours first, which are lanes and then steps of 32.
    float sums[kCount];
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) sums[i] = e[i] * e[i];
    converge();
#pragma unroll
    for (uint32_t half = 1; half < kWarp; half *= 2) {
#pragma unroll
      for (uint32_t i = 0; i < kCount; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], half);
    }
#pragma unroll
    for (uint32_t step = 1; step < kCount; step *= 2) {
#pragma unroll
      for (uint32_t i = 0; i < kCount; i += 2 * step) sums[i] += sums[i + step];
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

/// A warp's chunks of keys and values on their way to shared memory: each a bulk copy with a barrier of its own.
template <uint32_t kDim>
class ChunkRing {
 public:
  static constexpr uint32_t kBytes = kChunk * kDim * sizeof(float);  // of the keys, and of the values

  __host__ __device__ static constexpr size_t bytes(uint32_t stages) {
    return size_t{kAttentionWarps} * stages * 2 * kBytes;
  }
  /// `memory`: of the block, aligned to 128; `barriers`: [warps][kMostStages][2].
  __device__ ChunkRing(std::byte* memory, uint64_t* barriers, uint32_t stages)
      : chunks_(memory + size_t{threadIdx.x / kWarp} * stages * 2 * kBytes),
        barriers_(shared_address(barriers + threadIdx.x / kWarp * kMostStages * 2)),
        stages_(stages) {
    const uint32_t lane = threadIdx.x % kWarp;
    if (lane < 2 * stages)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers_ + lane * 8) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
  }

  /// Starts the copy of keys (kind 0) or values (kind 1) of the warp's n-th chunk; all lanes have read those of n - stages.
  __device__ void start(uint32_t kind, uint32_t n, const float* from) const {
    if (threadIdx.x % kWarp == 0) {
      const uint32_t barrier = barrier_of(kind, n);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(kBytes)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              shared_address(at(kind, n))),
          "l"(from), "n"(kBytes), "r"(barrier)
          : "memory");
    }
    __syncwarp();
  }
  /// Waits for them; they lie as [kChunk][kDim].
  __device__ const float* wait(uint32_t kind, uint32_t n) const {
    asm volatile(
        "{\n .reg .pred done;\n WAIT_%=:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @!done "
        "bra WAIT_%=;\n}" ::"r"(barrier_of(kind, n)),
        "r"(n / stages_ % 2)
        : "memory");
    __syncwarp();
    return reinterpret_cast<const float*>(at(kind, n));
  }

 private:
  __device__ static uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
  }
  __device__ std::byte* at(uint32_t kind, uint32_t n) const {
    return chunks_ + (n % stages_ * 2 + kind) * kBytes;
  }
  __device__ uint32_t barrier_of(uint32_t kind, uint32_t n) const {
    return barriers_ + (n % stages_ * 2 + kind) * 8;
  }
  std::byte* chunks_;
  uint32_t barriers_;
  uint32_t stages_;
};

/// How the lanes of a warp share a chunk: of keys lane l has a quarter of position l / 4; of values four columns of all
/// positions, or of every second where a head has 64.
template <uint32_t kDim>
struct Share {
  static constexpr uint32_t kKeyQuads = kDim / 16;
  static constexpr uint32_t kColumns = kDim / 4;  // lanes of a position
  static constexpr uint32_t kAtOnce = kWarp / kColumns;
  static constexpr uint32_t kValues = kChunk / kAtOnce;
  static_assert(kAtOnce * kColumns == kWarp);

  __device__ static uint32_t key_position() { return threadIdx.x % kWarp / 4; }
  __device__ static uint32_t key_quad(uint32_t i) { return threadIdx.x % 4 + 4 * i; }
  __device__ static uint32_t value_position(uint32_t i) {
    return i * kAtOnce + threadIdx.x % kWarp / kColumns;
  }
  __device__ static uint32_t value_quad() { return threadIdx.x % kColumns; }
};

/// A chunk in shared memory. Of the positions only [begin, end) are looked at; `newest` is read from elsewhere.
struct ChunkView {
  const float* rows = nullptr;
  uint32_t begin = 0, end = 0;
  uint32_t newest = kNoPosition;
  const float* newest_row = nullptr;

  static constexpr uint32_t kNoPosition = ~0u;
  __device__ bool has(uint32_t position) const { return begin <= position && position < end; }
  template <uint32_t kDim>
  __device__ float4 quad(uint32_t position, uint32_t index) const {
    return reinterpret_cast<const float4*>(position == newest ? newest_row : rows + position * kDim)[index];
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

  /// Weights of the chunk's positions into `weights`, shared memory of the warp.
  __device__ void weigh(const ChunkView& keys, const float (*queries)[kDim], float (*weights)[kChunk]) {
    using Part = Share<kDim>;
    const uint32_t j = Part::key_position();
    const bool seen = keys.has(j);
    float4 key[Part::kKeyQuads];
#pragma unroll
    for (uint32_t i = 0; i < Part::kKeyQuads; ++i) key[i] = keys.template quad<kDim>(j, Part::key_quad(i));
    converge();
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      float score = 0;
#pragma unroll
      for (uint32_t i = 0; i < Part::kKeyQuads; ++i)
        score = dot_of(reinterpret_cast<const float4*>(queries[q])[Part::key_quad(i)], key[i], score);
      score += __shfl_xor_sync(~0u, score, 1);
      score += __shfl_xor_sync(~0u, score, 2);
      if (!seen) score = -INFINITY;  // whatever lies there
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
  __device__ void add(const ChunkView& rows, const float (*weights)[kChunk]) {
    using Part = Share<kDim>;
#pragma unroll
    for (uint32_t i = 0; i < Part::kValues; ++i) {
      const uint32_t j = Part::value_position(i);
      if (!rows.has(j)) continue;
      const float4 value = rows.template quad<kDim>(j, Part::value_quad());
#pragma unroll
      for (uint32_t q = 0; q < kQueries; ++q) values[q] = fused(weights[q][j], value, values[q]);
    }
    converge();
  }
};

/// Of each strand what one block joins: a slice of the head's dimensions.
template <uint32_t kDim, uint32_t kQueries>
struct Parts {
  static constexpr uint32_t kSlice = kDim / kCluster;
  float2 sums[kStrands][kQueries];  // greatest score, sum of weights
  float values[kStrands][kQueries][kSlice];
};

/// Dynamic shared memory: ChunkRing<kDim>::bytes(stages). kSet: of one row, with norms, ropes and the write of key and value
/// to the cache.
template <uint32_t kDim, uint32_t kQueries, bool kSet>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kAttentionThreads, kQueries <= 2   ? 3
                                                                                      : kQueries <= 4 ? 2
                                                                                                      : 1)
    attention_strands(const __grid_constant__ AttentionStrands p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  __shared__ __align__(16) float queries[kQueries][kDim];
  __shared__ __align__(16) float newest[2][kDim];  // key, value
  __shared__ float cosines[kDim / 2], sines[kDim / 2];
  __shared__ __align__(16) float weights[kAttentionWarps][kQueries][kChunk];
  __shared__ __align__(16) Parts<kDim, kQueries> parts;
  __shared__ uint64_t barriers[kAttentionWarps * kMostStages * 2];
  extern __shared__ __align__(128) std::byte memory[];
  const ChunkRing<kDim> ring(memory, barriers, p.stages);
  const auto cluster = cooperative_groups::this_cluster();
  const uint32_t rank = cluster.block_rank(), unit = blockIdx.x / kCluster;
  const uint32_t kv_head = unit % p.kv_heads, r = unit / p.kv_heads;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};

  StepRow row;
  const uint32_t* ids = nullptr;  // of the slot's pages; null: the row is idle or refused
  uint32_t bits = 0;              // for the status
  uint32_t first_position = 0, c = 0, last = 0;
  uint32_t started = 0;  // chunks of the warp
  // The next of them: c + n kStrands.
  const auto start = [&](uint32_t kind, uint32_t n) {
    const uint32_t at = c + n * kStrands;
    const uint32_t page = __ldcg(ids + at / (kPagePositions / kChunk));
    const size_t within = size_t{at % (kPagePositions / kChunk)} * kChunk * kDim;
    if (page < p.table.cache_pages)
      ring.start(kind, n, p.cache + geometry.unit_offset(kind, page, kv_head) + within);
    return page < p.table.cache_pages;
  };
  const auto start_first = [&] {
    for (; ids != nullptr && started < p.stages && c + started * kStrands <= last; ++started) {
      if (!start(0, started)) break;  // found out again below
      start(1, started);
    }
  };
  const auto drain = [&] {
    for (uint32_t n = 0; n < started; ++n) {
      ring.wait(0, n);
      ring.wait(1, n);
    }
  };
  const auto find_row = [&] {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(p.rows) + r);
    memcpy(&row, &words, sizeof(row));
    const uint32_t last_page = row.position / kPagePositions;
    const bool idle = row.slot == kIdle;
    if (!idle) {
      bits = row.slot >= p.table.slots             ? kSlotOutOfRange
             : last_page >= p.table.pages_per_slot ? kPositionOutOfRange
                                                   : 0u;
    }
    if (!idle && bits == 0) ids = p.table.ids + size_t{row.slot} * p.table.pages_per_slot;
    first_position = p.window != 0 && row.position >= p.window ? row.position - p.window + 1 : 0;
    last = row.position / kChunk;
    // The warp's first chunk: the first of its strand that is not before the window.
    const uint32_t first = first_position / kChunk, strand = warp * kCluster + rank;
    c = first + (strand - first) % kStrands;
  };
  const auto check_pages = [&] {
    bool missing = false;
    for (uint32_t page = first_position / kPagePositions + threadIdx.x;
         ids != nullptr && page <= row.position / kPagePositions; page += kAttentionThreads)
      missing = missing || __ldcg(ids + page) >= p.table.cache_pages;
    if (__syncthreads_or(missing) != 0) {
      bits = kPageOutOfRange;
      ids = nullptr;
    }
    converge();
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
      start_first();
      find_angles();
    }
    check_pages();
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
  if (r >= run.rows || ids == nullptr) drain();  // what has been started ends before the block does
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
  if constexpr (!kSet) start_first();

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
  for (uint32_t n = 0; c + n * kStrands <= last; ++n) {
    const uint32_t at = c + n * kStrands, position = at * kChunk;
    ChunkView view;
    view.begin = position < first_position ? first_position - position : 0;
    view.end = row.position + 1 - position;
    if (kSet && at == last) view.newest = row.position % kChunk;
    const bool more = c + (n + p.stages) * kStrands <= last;
    view.rows = ring.wait(0, n);
    view.newest_row = newest[0];
    strand.weigh(view, queries, weights[warp]);
    __syncwarp();
    if (more) start(0, n + p.stages);
    view.rows = ring.wait(1, n);
    view.newest_row = newest[1];
    strand.add(view, weights[warp]);
    __syncwarp();
    if (more) start(1, n + p.stages);
  }
  asm volatile("barrier.cluster.wait;" ::: "memory");
  converge();
  if (any) {
    const uint32_t to = warp * kCluster + rank;
    constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      float4 v = strand.values[q];
      if constexpr (Share<kDim>::kAtOnce == 2) {
        v = make_float4(v.x + __shfl_xor_sync(~0u, v.x, 16), v.y + __shfl_xor_sync(~0u, v.y, 16),
                        v.z + __shfl_xor_sync(~0u, v.z, 16), v.w + __shfl_xor_sync(~0u, v.w, 16));
      }
      const uint32_t column = 4 * Share<kDim>::value_quad();
      if (lane < Share<kDim>::kColumns) {
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
