// Products of one row with 4-bit weights in units of 4 x 1,024: what the kernels for sets of commands share.
//
// Numerics class `fast, 12 bits of 128`: activations are quantized in pairs of groups of 64, q = round(x / s) with the power of
// two s that brings max|x| to [1024, 2048): whole numbers that f16 holds too. For each group of an output D = sum of code * q
// and S = sum of q are exact, whether int8 planes or f16 are multiplied: sums stay below 2^21. Of groups 0 and 1 of a pair,
// p = fma(scale1, D1, fma(bias1, S1, fma(scale0, D0, bias0 * S0))); of four pairs, sum = fma(s, p, sum) from 0 in ascending
// order; two such sums make that of 1,024 columns, and these are added in ascending order. No order but these is left to
// hardware, so that a kernel's shape, the number of warps and the arithmetic unit do not change a bit.
//
// Such a kernel lives for one to three microseconds, in which each warp passes its code once: what counts is how many
// instructions follow each other.
#pragma once

#include <cstdint>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/ops/decode_sets/bulk_ring.cuh"
#include "refrain/ops/decode_sets/tiles.h"

namespace refrain::ops::decode {

using namespace backend::cuda;

/// Activations of one row in shared memory, as the lanes of a warp read them: of each 1,024 columns and lane four pieces of 16
/// bytes: plane hi of its first 16 columns, of its last 16, plane lo of both.
struct Planes {
  uint4* codes = nullptr;  ///< [chunk][piece][lane]: q = 256 hi + lo
  /// [pair of groups]: s / 16, 16 S0, 16 S1, 0: the high halves of codes are used 16 times too large.
  float4* pairs = nullptr;

  __host__ __device__ static constexpr size_t bytes(uint32_t chunks) {
    return size_t{chunks} * (4 * kWarp * sizeof(uint4) + kTilePairs * sizeof(float4));
  }
  __device__ Planes(std::byte* memory, uint32_t chunks)
      : codes(reinterpret_cast<uint4*>(memory)),
        pairs(reinterpret_cast<float4*>(codes + size_t{chunks} * 4 * kWarp)) {}

  /// Four columns from `column` on: whole numbers plus kMagic.
  __device__ void put(uint32_t column, const uint32_t (&q)[4]) const {
    const uint32_t chunk = column / kTileColumns, lane = column / 32 % kWarp, half = column / 16 % 2,
                   k = column / 4 % 4;
    uint32_t* to = reinterpret_cast<uint32_t*>(codes) + ((chunk * 4 + half) * kWarp + lane) * 4 + k;
    // hi = (q + 128) >> 8; q - 256 hi has the low byte of q.
    to[0] = __byte_perm(__byte_perm(q[0] + 128, q[1] + 128, 0x0051),
                        __byte_perm(q[2] + 128, q[3] + 128, 0x0051), 0x5410);
    to[2 * kWarp * 4] = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
  }
  /// `scale`: s / 16.
  __device__ void put_pair(uint32_t pair, float scale, float sum0, float sum1) const {
    pairs[pair] = make_float4(scale, 16 * sum0, 16 * sum1, 0);
  }
};

/// Part of a row in the registers of a block: thread t has four columns at 4 (t + i threads), so that a warp has a pair of
/// groups. All loads are asked for before the first is used.
template <uint32_t kLoads>
struct RowPart {
  float4 v[kLoads];

  __device__ static uint32_t columns() { return 4 * blockDim.x * kLoads; }  ///< of a part
  __device__ static uint32_t column(uint32_t part, uint32_t i) {
    return part * columns() + 4 * (threadIdx.x + i * blockDim.x);
  }
  __device__ static uint32_t parts(uint32_t all) {
    return all <= columns() ? 1 : (all + columns() - 1) / columns();
  }
  /// `all`: columns of the row, a multiple of 4. What kernels before have written is never read through the non-coherent path.
  template <bool kSealed = false>
  __device__ void load(const float* x, uint32_t part, uint32_t all) {
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
      const uint32_t c = column(part, i);
      const auto* from = reinterpret_cast<const float4*>(x + c);
      v[i] = make_float4(0, 0, 0, 0);
      if (c < all) v[i] = kSealed ? __ldg(from) : __ldcg(from);
    }
  }
};

__device__ inline float square_of(float4 v) { return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w); }

/// Sums of squares of part of a row, a float for each 128 columns: a tree of neighbours. All threads of a warp together.
template <uint32_t kLoads>
__device__ void sum_squares(const RowPart<kLoads>& row, uint32_t part, uint32_t padded, float* squares) {
  float sums[kLoads];
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) sums[i] = square_of(row.v[i]);
  converge();
#pragma unroll
  for (uint32_t half = 1; half < kWarp; half *= 2) {
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], half);
  }
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) {
    const uint32_t c = row.column(part, i);
    if (threadIdx.x % kWarp == 0 && c < padded) squares[c / (4 * kWarp)] = sums[i];
  }
}

struct RowNorm {
  float eps = 0;
  float inverse = 0;  ///< 1 / columns, rounded
};

/// 1 / sqrt(mean of squares + eps) of a row: what sum_squares has left goes on as a tree within 1,024 columns, these in
/// ascending order.
__device__ inline float norm_factor(const float* squares, uint32_t chunks, const RowNorm& norm) {
  float sum = 0;
#pragma unroll 1
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    const float4 a = reinterpret_cast<const float4*>(squares)[2 * chunk],
                 b = reinterpret_cast<const float4*>(squares)[2 * chunk + 1];
    const float of_chunk = ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
    sum = chunk == 0 ? of_chunk : sum + of_chunk;
  }
  return __frsqrt_rn(sum * norm.inverse + norm.eps);
}

/// What a norm makes of four elements.
__device__ inline float4 normalized(float4 v, float factor, float4 gain) {
  return make_float4(v.x * factor * gain.x, v.y * factor * gain.y, v.z * factor * gain.z,
                     v.w * factor * gain.w);
}
template <uint32_t kLoads>
__device__ void normalize(RowPart<kLoads>& row, float factor, const RowPart<kLoads>& gains) {
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) row.v[i] = normalized(row.v[i], factor, gains.v[i]);
}

/// The power of two by which a pair of groups is quantized.
struct PairScale {
  float inverse;  ///< 1 / s; 0 for a pair of (nearly) nothing
  float scale;    ///< s / 16; NaN for a pair with a value that is not finite, or of 2^114 and more

  /// `greatest`: max|x| as bits, of which what is not finite is greatest.
  __device__ explicit PairScale(uint32_t greatest) {
    const uint32_t exponent = greatest >> 23;
    const bool some = exponent >= kLeastExponent;
    inverse = __uint_as_float(some ? (2 * 127 + 10 - exponent) << 23 : 0);
    scale = __uint_as_float(exponent > kMostExponent ? 0x7FFFFFFFu : some ? (exponent - 14) << 23 : 0);
  }
  // So that s / 16 and 2^24 s are normal numbers.
  static constexpr uint32_t kLeastExponent = 15, kMostExponent = 240;
};

/// A value times 1 / s as a whole number plus kMagic: the product is exact, the sum rounds. As a float it is kMagicFloat more.
inline constexpr uint32_t kMagic = 0x4B400000;
inline constexpr float kMagicFloat = 12582912.0f;
__device__ inline uint32_t quantized(float value, float inverse) {
  return __float_as_uint(__fmaf_rn(value, inverse, kMagicFloat));
}

/// Quantizes part of a row to `planes`, which are Planes or alike; all threads of a warp together, the caller synchronizes.
template <uint32_t kLoads, class Target>
__device__ void quantize(const Target& planes, const RowPart<kLoads>& row, uint32_t part, uint32_t padded) {
  uint32_t greatest[kLoads];
  converge();
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) {
    const auto magnitude = [](float f) { return __float_as_uint(f) & 0x7FFFFFFFu; };
    greatest[i] = __reduce_max_sync(~0u, max(max(magnitude(row.v[i].x), magnitude(row.v[i].y)),
                                             max(magnitude(row.v[i].z), magnitude(row.v[i].w))));
  }
  const bool upper = threadIdx.x % kWarp >= kWarp / 2;
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) {
    const uint32_t column = row.column(part, i);
    const PairScale scale(greatest[i]);
    const float4 v = row.v[i];
    const uint32_t q[4] = {quantized(v.x, scale.inverse), quantized(v.y, scale.inverse),
                           quantized(v.z, scale.inverse), quantized(v.w, scale.inverse)};
    const uint32_t sum = (q[0] + q[1]) + (q[2] + q[3]) - 4 * kMagic;
    const auto of_half = [](uint32_t sum) {
      return static_cast<float>(static_cast<int>(__reduce_add_sync(~0u, sum)));
    };
    const float sum0 = of_half(upper ? 0 : sum), sum1 = of_half(upper ? sum : 0);
    if (column >= padded) continue;  // by whole warps
    planes.put(column, q);
    if (threadIdx.x % kWarp == 0) planes.put_pair(column / (2 * kTileGroup), scale.scale, sum0, sum1);
  }
}

/// One lane's part of a unit.
struct Unit {
  uint4 codes[kTileRows];
  uint2 scales;  ///< (scale, bias) in bf16 of row_of_lane() for both groups of the pair that four lanes share
};

__device__ inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

/// The row of a unit of which this lane has a pair of groups, and dot() leaves the sum in lanes from kSumLane on.
inline constexpr uint32_t kSumLane = kWarp - kTileRows;
__device__ inline uint32_t row_of_lane(uint32_t lane) { return lane % 2 * 2 + lane / 2 % 2; }
/// Where in a unit Unit::scales are.
__device__ inline size_t scales_of_lane(uint32_t lane) {
  return tile_scale_offset(row_of_lane(lane), lane / 4 * 2);
}

/// Four products of unsigned codes and signed activations, added.
__device__ inline int dot4(uint32_t codes, uint32_t activations, int sum) {
  int result;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(codes), "r"(activations), "r"(sum));
  return result;
}

/// The sum over a chunk's 1,024 columns of one row of the unit: row_of_lane(lane).
__device__ inline float dot(const Unit& unit, const Planes& planes, uint32_t chunk, uint32_t lane) {
  const uint4* x = planes.codes + size_t{chunk} * 4 * kWarp + lane;
  const uint4 piece[4] = {x[0], x[kWarp], x[2 * kWarp], x[3 * kWarp]};
  int sums[kTileRows];  // of 32 columns, times 16
#pragma unroll
  for (uint32_t r = 0; r < kTileRows; ++r) {
    const uint32_t words[4] = {unit.codes[r].x, unit.codes[r].y, unit.codes[r].z, unit.codes[r].w};
    int s[4] = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t p = 0; p < 4; ++p) {
      const uint32_t activations[4] = {piece[p].x, piece[p].y, piece[p].z, piece[p].w};
      const uint32_t mask = p % 2 == 0 ? 0x0F0F0F0Fu : 0xF0F0F0F0u;  // high halves stay 16 times too large
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) s[p] = dot4(words[k] & mask, activations[k], s[p]);
    }
    sums[r] = (s[0] * 16 + s[1]) * 256 + (s[2] * 16 + s[3]);
  }
  // Two lanes share a group: even ones keep rows 0 and 1, odd ones 2 and 3. Then four a pair: each keeps a row of both groups.
  converge();
  const bool odd = lane % 2 != 0, second = lane / 2 % 2 != 0;
  int a = odd ? sums[2] : sums[0], b = odd ? sums[3] : sums[1];
  a += __shfl_xor_sync(~0u, odd ? sums[0] : sums[2], 1);
  b += __shfl_xor_sync(~0u, odd ? sums[1] : sums[3], 1);
  const int kept = second ? b : a, other = __shfl_xor_sync(~0u, second ? a : b, 2);
  const float4 pair = planes.pairs[chunk * kTilePairs + lane / 4];
  float sum = bf16_high(unit.scales.x) * pair.y;
  sum = __fmaf_rn(bf16_low(unit.scales.x), static_cast<float>(second ? other : kept), sum);
  sum = __fmaf_rn(bf16_high(unit.scales.y), pair.z, sum);
  const float of_pair = __fmaf_rn(bf16_low(unit.scales.y), static_cast<float>(second ? kept : other), sum);
  sum = __fmaf_rn(pair.x, of_pair, 0);
  // From the pair below to the next: of four, one more has its sum each time.
#pragma unroll
  for (uint32_t i = 1; i < kTilePairs / 2; ++i) {
    const float below = __shfl_up_sync(~0u, sum, kTileRows);
    if (lane / kTileRows % (kTilePairs / 2) == i) sum = __fmaf_rn(pair.x, of_pair, below);
  }
  return sum + __shfl_xor_sync(~0u, sum, kWarp / 2);
}

using UnitRing = BulkRing<kTileBytes>;

/// This lane's part of a unit in shared memory.
__device__ inline Unit unit_at(const std::byte* at) {
  const uint32_t lane = threadIdx.x % kWarp;
  Unit unit;
#pragma unroll
  for (uint32_t r = 0; r < kTileRows; ++r)
    unit.codes[r] = *reinterpret_cast<const uint4*>(at + tile_piece_offset(r, lane));
  unit.scales = *reinterpret_cast<const uint2*>(at + scales_of_lane(lane));
  __syncwarp();
  return unit;
}

/// This lane's part of a unit in memory, which nothing else on the SM will read.
__device__ inline Unit load_unit(const std::byte* at) {
  const uint32_t lane = threadIdx.x % kWarp;
  Unit unit;
#pragma unroll
  for (uint32_t r = 0; r < kTileRows; ++r) {
    uint4& codes = unit.codes[r];
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(codes.x), "=r"(codes.y), "=r"(codes.z), "=r"(codes.w)
                 : "l"(at + tile_piece_offset(r, lane)));
  }
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(unit.scales.x), "=r"(unit.scales.y)
               : "l"(at + scales_of_lane(lane)));
  return unit;
}

}  // namespace refrain::ops::decode
