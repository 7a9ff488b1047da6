// Attention over a paged cache in 64 strands: what a warp does.
//
// Numerics class `fast, f32, 64 strands of 8 positions`: strand s has the chunks of 8 positions c = s, s + 64, ..., in which
// it keeps a running maximum, sum and weighted values, positions ascending; strands join at the end. A row and a key-value
// head with its queries belong to a cluster of 8 blocks of 8 warps: strand s to warp s / 8 of block s % 8. Each block joins
// a slice of the head's dimensions. Nothing in this depends on what other rows there are.
#pragma once

#include "refrain/backend/cuda/device.cuh"
#include "refrain/ops/decode_sets/bulk_ring.cuh"

namespace refrain::ops::decode {

using namespace backend::cuda;

inline constexpr uint32_t kCluster = 8;  // blocks of a key-value head
inline constexpr uint32_t kAttentionWarps = 8, kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr uint32_t kChunk = 8;  // positions
inline constexpr uint32_t kStrands = kCluster * kAttentionWarps;
inline constexpr uint32_t kMostStages = 2;

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

/// A warp's chunks of keys (kind 0) and values (kind 1) on their way to shared memory; they lie as [kChunk][kDim].
template <uint32_t kDim>
class ChunkRing {
 public:
  static constexpr uint32_t kBytes = kChunk * kDim * sizeof(float);

  __host__ __device__ static constexpr size_t bytes(uint32_t stages) {
    return size_t{kAttentionWarps} * 2 * stages * kBytes;
  }
  /// `memory`, `barriers`: of the block, these [warps][2][kMostStages].
  __device__ ChunkRing(std::byte* memory, uint64_t* barriers, uint32_t stages)
      : rings_{{memory + size_t{2 * warp()} * stages * kBytes, barriers + 2 * warp() * kMostStages, stages},
               {memory + size_t{2 * warp() + 1} * stages * kBytes, barriers + (2 * warp() + 1) * kMostStages,
                stages}} {}

  __device__ void start(uint32_t kind, uint32_t n, const float* from) const { rings_[kind].start(n, from); }
  __device__ const float* wait(uint32_t kind, uint32_t n) const {
    return reinterpret_cast<const float*>(rings_[kind].wait(n));
  }

 private:
  __device__ static uint32_t warp() { return threadIdx.x / kWarp; }
  BulkRing<kBytes> rings_[2];
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

}  // namespace refrain::ops::decode
