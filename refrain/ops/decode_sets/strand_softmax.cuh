// Attention by strands (strand.cuh): products of two f16 a factor, and the weights of a strand.
//
// Lane l of a warp is (g, t) = (l / 4, l % 4). Of scores it has those of query g and positions 2 t, 2 t + 1, 8 + 2 t and
// 9 + 2 t of a chunk.
#pragma once

#include <cuda_fp16.h>

#include "refrain/backend/cuda/device.cuh"

namespace refrain::ops::decode {

using namespace backend::cuda;

/// Two f16 that add up to a float, of two floats each.
struct Halves {
  uint32_t high, low;

  __device__ Halves(float a, float b) {
    const __half2 rounded = __floats2half2_rn(a, b);
    const float2 back = __half22float2(rounded);
    high = bits(rounded);
    low = bits(__floats2half2_rn(a - back.x, b - back.y));
  }
  __device__ static uint32_t bits(__half2 pair) { return reinterpret_cast<const uint32_t&>(pair); }
};

/// sums += a b, with a of 16 x 16 by rows, b of 16 x 8 by columns, as mma.sync has them.
__device__ inline void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// A query's high and low halves by a key: 32 dimensions of the lanes t, in an order that they share.
__device__ inline void multiply(float (&sums)[4], const uint4& high, const uint4& low, const uint4& key) {
  multiply(sums, high.x, low.x, high.y, low.y, key.x, key.y);
  multiply(sums, high.z, low.z, high.w, low.w, key.z, key.w);
}

/// The right operand of the product of a chunk's values with their weights.
struct Weights {
  Halves first, second;
};

/// Of a strand, for query g: the greatest score and this lane's part of the sum of weights.
struct Softmax {
  float max = -INFINITY;
  float sum = 0;

  /// `products`: of two positions each, by the high halves of the query, by the low ones. Of the positions only [begin, end)
  /// are looked at. `scale`: of scores, and log2(e).
  __device__ static void score(const float (&products)[2][4], float scale, uint32_t begin, uint32_t end,
                               float (&scores)[2][2]) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const uint32_t position = 8 * i + 2 * (threadIdx.x % 4) + e;
        scores[i][e] = (products[i][e] + products[i][e + 2]) * scale;
        if (position < begin || position >= end) scores[i][e] = -INFINITY;
      }
    }
  }
  __device__ static float greatest(const float (&scores)[2][2]) {
    return fmaxf(fmaxf(scores[0][0], scores[0][1]), fmaxf(scores[1][0], scores[1][1]));
  }
  /// Of the lanes of a query.
  __device__ static float greatest(float value) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
  }
  /// Takes a chunk's scores, which become its weights; returns what weights before it shrink by.
  __device__ float take(float (&scores)[2][2]) {
    const float now = greatest(fmaxf(max, greatest(scores)));
    const float factor = exp2f(max - now);
    max = now;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) scores[i][e] = exp2f(scores[i][e] - now);
    }
    sum = __fmaf_rn(sum, factor, (scores[0][0] + scores[0][1]) + (scores[1][0] + scores[1][1]));
    return factor;
  }
  /// `sum` becomes that of all positions.
  __device__ void finish() {
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
  }
};

/// From lanes of a query each to those that have queries 2 t and 2 t + 1.
__device__ inline float2 of_queries(float value) {
  const uint32_t from = 8 * (threadIdx.x % 4);  // lane (2 t, 0)
  return make_float2(__shfl_sync(~0u, value, from), __shfl_sync(~0u, value, from + 4));
}

}  // namespace refrain::ops::decode
