// Attention over a paged cache of f16 in 64 strands: what a warp does.
//
// Numerics class `fast, two f16 a factor, 64 strands of 16 positions`: strand s has the chunks of 16 positions c = s, s + 64,
// ..., in which it keeps a running maximum, sum and weighted values, positions ascending; eight strands join, then these
// eight. Keys and values are f16; a query and a weight are taken as the sum of two f16, which keeps 21 bits or more. Products
// are the tensor cores', summed in f32. What a row or column of one gives depends on no other, and so nothing in this on what
// else there is.
#pragma once

#include "refrain/core/half.h"
#include "refrain/ops/decode_sets/strand_softmax.cuh"

namespace refrain::ops::decode {

inline constexpr uint32_t kCluster = 8;  // blocks of a key-value head
inline constexpr uint32_t kAttentionWarps = 8, kAttentionThreads = kAttentionWarps * kWarp;
inline constexpr uint32_t kChunk = 16;  // positions
inline constexpr uint32_t kStrands = kCluster * kAttentionWarps;
inline constexpr uint32_t kMostQueries = 8;

/// Of one pair of a head, as rope has it.
__device__ inline void find_angle(uint32_t position, float frequency, float& cosine, float& sine) {
  double exact_sine, exact_cosine;
  sincos(static_cast<double>(static_cast<float>(position) * frequency), &exact_sine, &exact_cosine);
  cosine = static_cast<float>(exact_cosine);
  sine = static_cast<float>(exact_sine);
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
    const float factor = __frsqrt_rn(sums[0] * (1.0f / kDim) + eps);
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
  /// As kv_write writes it.
  __device__ __half cached(uint32_t i) const { return __ushort_as_half(f16::saturated(e[i]).bits); }
};

/// The queries of a key-value head in shared memory, in two f16 each. Padded so that the lanes of a load meet no bank twice.
template <uint32_t kDim>
struct Queries {
  static constexpr uint32_t kStride = kDim + 32;
  __half high[kMostQueries][kStride], low[kMostQueries][kStride];

  __device__ void store(uint32_t query, const Head<kDim>& head) {
#pragma unroll
    for (uint32_t i = 0; i < head.kCount; ++i) {
      const __half rounded = __float2half_rn(head.e[i]);
      high[query][threadIdx.x % kWarp + i * kWarp] = rounded;
      low[query][threadIdx.x % kWarp + i * kWarp] = __float2half_rn(head.e[i] - __half2float(rounded));
    }
  }
};

/// A chunk's keys and values in the registers of a warp. Lane l is (g, t) = (l / 4, l % 4): of keys it has columns 32 j + 8 t
/// and seven more of positions g and 8 + g; of values columns 64 h + 8 g and seven more of positions 2 t, 2 t + 1, 8 + 2 t
/// and 9 + 2 t: so a load of a warp takes whole sectors, and products find their operands in place.
template <uint32_t kDim>
struct Chunk {
  static constexpr uint32_t kKeyLoads = kDim / 32, kValueLoads = kDim / 64;
  uint4 keys[2][kKeyLoads], values[4][kValueLoads];

  __device__ static uint32_t group() { return threadIdx.x % kWarp / 4; }
  __device__ static uint32_t in_group() { return threadIdx.x % 4; }
  __device__ static uint32_t key_position(uint32_t i) { return 8 * i + group(); }
  __device__ static uint32_t value_position(uint32_t i) { return 8 * (i / 2) + 2 * in_group() + i % 2; }
  __device__ static uint32_t key_column(uint32_t j) { return 32 * j + 8 * in_group(); }
  __device__ static uint32_t value_column(uint32_t h) { return 64 * h + 8 * group(); }

  /// `from`: position 0 of the chunk, [kChunk][kDim]; through L2.
  __device__ void load_keys(const __half* from) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
#pragma unroll
      for (uint32_t j = 0; j < kKeyLoads; ++j)
        keys[i][j] = load(from + key_position(i) * kDim + key_column(j));
    }
  }
  __device__ void load_values(const __half* from) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
#pragma unroll
      for (uint32_t h = 0; h < kValueLoads; ++h)
        values[i][h] = load(from + value_position(i) * kDim + value_column(h));
    }
  }
  /// Position `at` is what shared memory has.
  __device__ void replace(uint32_t at, const __half* key, const __half* value) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      if (key_position(i) != at) continue;
#pragma unroll
      for (uint32_t j = 0; j < kKeyLoads; ++j)
        keys[i][j] = *reinterpret_cast<const uint4*>(key + key_column(j));
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      if (value_position(i) != at) continue;
#pragma unroll
      for (uint32_t h = 0; h < kValueLoads; ++h)
        values[i][h] = *reinterpret_cast<const uint4*>(value + value_column(h));
    }
  }
  /// Of positions that are not looked at the values are zero, whatever lies there.
  __device__ void clear_values(uint32_t begin, uint32_t end) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      if (begin <= value_position(i) && value_position(i) < end) continue;
#pragma unroll
      for (uint32_t h = 0; h < kValueLoads; ++h) values[i][h] = make_uint4(0, 0, 0, 0);
    }
  }

 private:
  __device__ static uint4 load(const __half* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
  }
};

__device__ inline uint32_t word(const uint4& v, uint32_t i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/// What a warp keeps of its strand. Lane (g, t) has of queries 2 t and 2 t + 1 the values of columns 64 h + 8 g and seven
/// more.
template <uint32_t kDim>
struct Strand : Softmax {
  float values[kDim / 64][4][4] =
      {};  // weighted, not divided: [h][w]: columns 2 w and 2 w + 1 of these eight, two queries each

  /// `query`: g, or another where there is none of that number.
  __device__ Weights weigh(const Chunk<kDim>& chunk, const Queries<kDim>& queries, uint32_t query,
                           float scale, uint32_t begin, uint32_t end) {
    float products[2][4] = {}, scores[2][2];
    converge();
#pragma unroll
    for (uint32_t j = 0; j < chunk.kKeyLoads; ++j) {
      const uint4 high = *reinterpret_cast<const uint4*>(&queries.high[query][chunk.key_column(j)]),
                  low = *reinterpret_cast<const uint4*>(&queries.low[query][chunk.key_column(j)]);
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) multiply(products[i], high, low, chunk.keys[i][j]);
    }
    score(products, scale, begin, end, scores);
    const float2 factors = of_queries(take(scores));
#pragma unroll
    for (auto& half : values) {
#pragma unroll
      for (auto& pair : half) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) pair[i] *= i % 2 == 0 ? factors.x : factors.y;
      }
    }
    return {Halves(scores[0][0], scores[0][1]), Halves(scores[1][0], scores[1][1])};
  }

  __device__ void add(const Chunk<kDim>& chunk, const Weights& weights) {
    converge();
#pragma unroll
    for (uint32_t h = 0; h < chunk.kValueLoads; ++h) {
#pragma unroll
      for (uint32_t w = 0; w < 4; ++w) {
        const auto pair = [&](uint32_t i, uint32_t halves) {
          return __byte_perm(word(chunk.values[i][h], w), word(chunk.values[i + 1][h], w), halves);
        };
        const uint32_t a[4] = {pair(0, 0x5410), pair(0, 0x7632), pair(2, 0x5410), pair(2, 0x7632)};
        multiply(values[h][w], a[0], a[1], a[2], a[3], weights.first.low, weights.second.low);
        multiply(values[h][w], a[0], a[1], a[2], a[3], weights.first.high, weights.second.high);
      }
    }
  }

  /// `sum` becomes that of all positions; where `stores`, the values go to [queries][kDim] floats.
  __device__ void finish(bool stores, float* to, uint32_t queries) {
    Softmax::finish();
#pragma unroll
    for (uint32_t e = 0; e < 2; ++e) {
      const uint32_t query = 2 * Chunk<kDim>::in_group() + e;
      if (!stores || query >= queries) continue;
#pragma unroll
      for (uint32_t h = 0; h < kDim / 64; ++h) {
        auto* at = reinterpret_cast<float4*>(to + query * kDim + Chunk<kDim>::value_column(h));
        const auto& v = values[h];
        at[0] = make_float4(v[0][e], v[0][e + 2], v[1][e], v[1][e + 2]);
        at[1] = make_float4(v[2][e], v[2][e + 2], v[3][e], v[3][e + 2]);
      }
    }
  }
};

}  // namespace refrain::ops::decode
