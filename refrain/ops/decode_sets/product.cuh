// Products of one row with 4-bit weights in units of 4 x 1,024: what the kernels for sets of commands share.
//
// Numerics class `fast, two int8 planes`: activations are quantized in groups of 64 to 16 bits, q = round(x / s) with the
// power of two s that brings max|x| to [16320, 32640), and split into two planes of int8, q = 256 hi + lo. For each group g
// of an output, D = sum of code * q and S = sum of q are exact integers and p_g = s (scale * D + bias * S), one FMA. The 16
// values of 1,024 columns are added as a tree of neighbours, the sums of 1,024 in ascending order. No order but these is
// left to hardware, so that a kernel's shape, the number of warps and the arithmetic unit do not change a bit.
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
  uint4* codes = nullptr;  ///< [chunk][piece][lane]
  float2* groups =
      nullptr;  ///< [group]: s / 16, 16 S, since the high halves of codes are used 16 times too large

  __host__ __device__ static constexpr size_t bytes(uint32_t chunks) {
    return size_t{chunks} * (4 * kWarp * sizeof(uint4) + kTileGroups * sizeof(float2));
  }
  __device__ Planes(std::byte* memory, uint32_t chunks)
      : codes(reinterpret_cast<uint4*>(memory)),
        groups(reinterpret_cast<float2*>(codes + size_t{chunks} * 4 * kWarp)) {}

  /// Four columns from `column` on.
  __device__ void put(uint32_t column, uint32_t high, uint32_t low) const {
    const uint32_t chunk = column / kTileColumns, lane = column / 32 % kWarp, half = column / 16 % 2,
                   k = column / 4 % 4;
    uint32_t* to = reinterpret_cast<uint32_t*>(codes) + ((chunk * 4 + half) * kWarp + lane) * 4 + k;
    to[0] = high;
    to[2 * kWarp * 4] = low;
  }
  __device__ void put_group(uint32_t group, float2 scale_and_sum) const { groups[group] = scale_and_sum; }
};

/// Part of a row in the registers of a block: thread t has four columns at 4 (t + i threads), so that 16 lanes have a group of
/// 64. All loads are asked for before the first is used.
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

/// The greatest, and the sum, over each half of a warp.
__device__ inline uint32_t greatest_of_half(uint32_t value) {
  const bool upper = threadIdx.x % kWarp >= kWarp / 2;
  const uint32_t first = __reduce_max_sync(~0u, upper ? 0 : value),
                 second = __reduce_max_sync(~0u, upper ? value : 0);
  return upper ? second : first;
}
__device__ inline uint32_t sum_of_half(uint32_t value) {
  const bool upper = threadIdx.x % kWarp >= kWarp / 2;
  const uint32_t first = __reduce_add_sync(~0u, upper ? 0 : value),
                 second = __reduce_add_sync(~0u, upper ? value : 0);
  return upper ? second : first;
}

/// The power of two by which a group is quantized.
struct GroupScale {
  float inverse;  ///< 1 / s; 0 for a group of (nearly) nothing
  float scale;    ///< s / 16; NaN for a group with a value that is not finite

  /// `greatest`: max|x| as bits, of which what is not finite is greatest.
  __device__ explicit GroupScale(uint32_t greatest) {
    // From 1.9921 on a mantissa counts as 2: 32640 and more have no high plane.
    const uint32_t exponent = (greatest + 0x10200u) >> 23;
    const bool some = exponent >= kLeastExponent;
    inverse = __uint_as_float(some ? (2 * 127 + 14 - exponent) << 23 : 0);
    scale = __uint_as_float(greatest >= 0x7F800000u ? 0x7FFFFFFFu : some ? (exponent - 18) << 23 : 0);
  }
  static constexpr uint32_t kLeastExponent = 19;
};

/// Four values as integers plus kMagic, and these as bytes of the two planes.
struct Quantized {
  static constexpr uint32_t kMagic = 0x4B400000;
  uint32_t sum, high, low;

  __device__ Quantized(float4 v, float inverse) {
    // The product is exact and the sum rounds to an integer.
    const auto rounded = [&](float f) { return __float_as_uint(__fmaf_rn(f, inverse, 12582912.0f)); };
    const uint32_t q[4] = {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
    sum = (q[0] + q[1]) + (q[2] + q[3]);
    // hi = (q + 128) >> 8 fits a byte; q - 256 hi has the low byte of q.
    high = __byte_perm(__byte_perm(q[0] + 128, q[1] + 128, 0x0051),
                       __byte_perm(q[2] + 128, q[3] + 128, 0x0051), 0x5410);
    low = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
  }
};

/// Quantizes part of a row to `planes`, which are Planes or alike; all threads of a warp together, the caller synchronizes. A
/// group with a value that is not finite gets a NaN as its scale.
template <uint32_t kLoads, class Target>
__device__ void quantize(const Target& planes, const RowPart<kLoads>& row, uint32_t part, uint32_t padded) {
  uint32_t greatest[kLoads];
  converge();
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) {
    const auto magnitude = [](float f) { return __float_as_uint(f) & 0x7FFFFFFFu; };
    greatest[i] = greatest_of_half(max(max(magnitude(row.v[i].x), magnitude(row.v[i].y)),
                                       max(magnitude(row.v[i].z), magnitude(row.v[i].w))));
  }
#pragma unroll
  for (uint32_t i = 0; i < kLoads; ++i) {
    const uint32_t column = row.column(part, i);
    const GroupScale scale(greatest[i]);
    const Quantized q(row.v[i], scale.inverse);
    const uint32_t sum = sum_of_half(q.sum) - kTileGroup * Quantized::kMagic;
    if (column >= padded) continue;  // by whole warps
    planes.put(column, q.high, q.low);
    if (threadIdx.x % 16 == 0)
      planes.put_group(column / kTileGroup,
                       make_float2(scale.scale, static_cast<float>(static_cast<int>(sum)) * 16));
  }
}

/// One lane's part of a unit.
struct Unit {
  uint4 codes[kTileRows];
  uint2 scales;  ///< (scale, bias) in bf16 of two rows for this lane's group
};

__device__ inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

/// Four products of unsigned codes and signed activations, added.
__device__ inline int dot4(uint32_t codes, uint32_t activations, int sum) {
  int result;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(codes), "r"(activations), "r"(sum));
  return result;
}

/// The row of a unit whose sum dot() leaves in this lane.
__device__ inline uint32_t row_of_lane(uint32_t lane) { return lane % 2 * 2 + lane / 2 % 2; }

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
  // Two lanes share a group: even ones keep rows 0 and 1, odd ones 2 and 3.
  converge();
  const bool odd = lane % 2 != 0, second = lane / 2 % 2 != 0;
  int a = odd ? sums[2] : sums[0], b = odd ? sums[3] : sums[1];
  a += __shfl_xor_sync(~0u, odd ? sums[0] : sums[2], 1);
  b += __shfl_xor_sync(~0u, odd ? sums[1] : sums[3], 1);
  const float2 group = planes.groups[chunk * kTileGroups + lane / 2];
  const auto value = [&](uint32_t pair, int d) {
    return group.x * __fmaf_rn(bf16_low(pair), static_cast<float>(d), bf16_high(pair) * group.y);
  };
  const float first = value(unit.scales.x, a), other = value(unit.scales.y, b);
  float sum = (second ? other : first) + __shfl_xor_sync(~0u, second ? first : other, 2);
  sum += __shfl_xor_sync(~0u, sum, 4);
  sum += __shfl_xor_sync(~0u, sum, 8);
  return sum + __shfl_xor_sync(~0u, sum, 16);
}

using UnitRing = BulkRing<kTileBytes>;

/// This lane's part of a unit in shared memory.
__device__ inline Unit unit_at(const std::byte* at) {
  const uint32_t lane = threadIdx.x % kWarp;
  Unit unit;
#pragma unroll
  for (uint32_t r = 0; r < kTileRows; ++r)
    unit.codes[r] = reinterpret_cast<const uint4*>(at + r * kTileRowBytes)[lane];
  unit.scales = reinterpret_cast<const uint2*>(at + kTileCodesBytes)[lane];
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
                 : "l"(reinterpret_cast<const uint4*>(at + r * kTileRowBytes) + lane));
  }
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(unit.scales.x), "=r"(unit.scales.y)
               : "l"(reinterpret_cast<const uint2*>(at + kTileCodesBytes) + lane));
  return unit;
}

}  // namespace refrain::ops::decode
