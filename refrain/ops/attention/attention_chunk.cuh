// A chunk of 256 positions for one query head of one row: what the CUDA kernels of attention and attention_part share, and how
// those of attention and attention_merge join chunks. Each score is summed by a warp, lane d % 32 taking dimension d; each
// value by one thread, positions ascending.
#pragma once

#include <cuda_fp16.h>

#include <string_view>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/core/half.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/step_row.h"
#include "refrain/ops/tanh.h"

namespace refrain::ops::attention_cuda {

inline constexpr uint32_t kThreads = 256;
// Of the kernels of all three ops: they give the same bits.
inline constexpr std::string_view kNumerics = "exact, f32 FMA, 32 lanes, blocks of 64 in chunks of 256";

/// e^x, all but always the nearest float.
__device__ inline float exponential(float x) { return static_cast<float>(exp(static_cast<double>(x))); }

/// An element of the cache.
__device__ inline float widened(float element) { return element; }
__device__ inline float widened(f16 element) { return __half2float(__ushort_as_half(element.bits)); }

/// Greatest score and sum of the weights of some positions.
struct Sums {
  float max = -INFINITY;
  float sum = 0;
};

/// Factors by which two parts count from now on.
struct Factors {
  float total = 1, part = 1;

  __device__ float join(float total_value, float part_value) const {
    return total_value * total + part_value * part;
  }
};

__device__ inline Factors join(Sums& total, const Sums& part) {
  const float max = fmaxf(total.max, part.max);
  const Factors factors = {exponential(total.max - max), exponential(part.max - max)};
  total = {max, factors.join(total.sum, part.sum)};
  return factors;
}

/// A row as a block of threads computes it: one query head of it. Every thread makes it, after which all agree.
struct Row {
  const uint32_t* pages;  ///< null: idle or refused
  uint32_t first, position;

  __device__ uint32_t first_chunk() const { return first / kAttentionChunk; }
  __device__ uint32_t last_chunk() const { return position / kAttentionChunk; }
};

/// Checks row `r`; `shared` is one of the block.
__device__ inline Row check(const AttentionConstants& c, const StepRow& step, const uint32_t* ids,
                            uint32_t* status, Row* shared) {
  if (threadIdx.x == 0) {
    const PageTable table = {
        .ids = ids, .slots = c.slots, .pages_per_slot = c.pages_per_slot, .cache_pages = c.pages};
    const uint32_t first = c.first_position(step.position);
    const CheckedRow row = check_row(step, table, first);
    if (row.pages == nullptr) raise_status(status, row.status_word, row.status_bits);
    *shared = {row.pages, first, row.position};
  }
  __syncthreads();
  return *shared;
}

/// A chunk of a row for one query head, of a cache of T. All threads of the block call its functions, with weights of the
/// block's.
template <class T>
class Chunk {
 public:
  /// weights: [256], shared. query: [head_dim].
  __device__ Chunk(const AttentionConstants& c, const Row& row, const float* query, const T* cache,
                   uint32_t kv_head, uint32_t chunk, float* weights)
      : c_(c), row_(row), cache_(cache), kv_head_(kv_head), weights_(weights) {
    begin_ = max(row.first, chunk * kAttentionChunk);
    end_ = min(row.position + 1, (chunk + 1) * kAttentionChunk);
    __syncthreads();  // the weights of the chunk before this one have been read
    for (uint32_t j = begin_ + threadIdx.x / backend::cuda::kWarp; j < end_;
         j += kThreads / backend::cuda::kWarp) {
      const T* key = vector(0, j);
      float dot = 0;
      for (uint32_t d = threadIdx.x % backend::cuda::kWarp; d < c.head_dim; d += backend::cuda::kWarp)
        dot = __fmaf_rn(query[d], widened(key[d]), dot);
      dot = backend::cuda::warp_sum(dot);
      if (threadIdx.x % backend::cuda::kWarp == 0) {
        const float score = dot * c.scale;
        weights[j % kAttentionChunk] = c.softcap != 0 ? c.softcap * tanh_by_fma(score / c.softcap) : score;
      }
    }
    __syncthreads();
    float greatest[kAttentionChunkPages];
    each_block([&](uint32_t block, uint32_t from, uint32_t to) {
      greatest[block] = -INFINITY;
      for (uint32_t j = from; j < to; ++j)
        greatest[block] = fmaxf(greatest[block], weights[j % kAttentionChunk]);
    });
    __syncthreads();
    each_block([&](uint32_t block, uint32_t from, uint32_t to) {
      const uint32_t j = from / kPagePositions * kPagePositions + threadIdx.x;
      if (from <= j && j < to) {
        float& weight = weights[j % kAttentionChunk];
        weight = exponential(weight - greatest[block]);
      }
    });
    __syncthreads();
    each_block([&](uint32_t block, uint32_t from, uint32_t to) {
      Sums part{greatest[block], 0};
      for (uint32_t j = from; j < to; ++j) part.sum += weights[j % kAttentionChunk];
      factors_[block] = join(sums, part);
    });
  }

  /// The weighted values, of dimension `d`.
  __device__ float weighted(uint32_t d) const {
    float total = 0;
    each_block([&](uint32_t block, uint32_t from, uint32_t to) {
      float value = 0;
      for (uint32_t j = from; j < to; ++j)
        value = __fmaf_rn(weights_[j % kAttentionChunk], widened(vector(1, j)[d]), value);
      total = factors_[block].join(total, value);
    });
    return total;
  }

  Sums sums;

 private:
  /// Blocks of 64 that have positions, ascending: their number in the chunk and positions [from, to).
  template <class Each>
  __device__ void each_block(const Each& each) const {
#pragma unroll
    for (uint32_t block = 0; block < kAttentionChunkPages; ++block) {
      const uint32_t first = begin_ / kAttentionChunk * kAttentionChunk + block * kPagePositions;
      const uint32_t from = max(begin_, first), to = min(end_, first + kPagePositions);
      if (from < to) each(block, from, to);
    }
  }
  __device__ const T* vector(uint32_t kind, uint32_t j) const {
    const CacheGeometry geometry = {c_.pages, c_.kv_heads, c_.head_dim};
    return cache_ + geometry.unit_offset(kind, row_.pages[j / kPagePositions], kv_head_) +
           size_t{j % kPagePositions} * c_.head_dim;
  }

  const AttentionConstants& c_;
  const Row& row_;
  const T* cache_;
  const uint32_t kv_head_;
  float* const weights_;
  uint32_t begin_, end_;  // positions
  Factors factors_[kAttentionChunkPages];
};

}  // namespace refrain::ops::attention_cuda
