// Products of one row with 4-bit weights in units of 4 x 1,024: what the kernels for sets of commands share.
//
// Numerics class `fast, two int8 planes`: activations are quantized in groups of 64 to 16 bits, q = round(x * 32512 / max|x|),
// and split into two planes of int8, q = 256 hi + lo. For each group g of an output, D = sum of code * q and S = sum of q
// are exact integers and p_g = s_x (scale * D + bias * S), one FMA. The 16 values of 1,024 columns are added as a tree of
// neighbours, the sums of 1,024 in ascending order. No order but these is left to hardware, so that a kernel's shape, the
// number of warps and the arithmetic unit do not change a bit.
#pragma once

#include <cstdint>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/ops/decode_sets/bulk_ring.cuh"
#include "refrain/ops/decode_sets/tiles.h"

namespace refrain::ops::decode {

using namespace backend::cuda;

inline constexpr float kQuantRange = 127.0f * 256.0f;

/// Activations of one row in shared memory, as the lanes of a warp read them: of each 1,024 columns and lane four pieces of 16
/// bytes: plane hi of its first 16 columns, of its last 16, plane lo of both.
struct Planes {
  uint4* codes = nullptr;    ///< [chunk][piece][lane]
  float2* groups = nullptr;  ///< [group]: s_x, S
  float* squares = nullptr;  ///< [group]: sum of x * x, for norms

  __host__ __device__ static constexpr size_t bytes(uint32_t chunks) {
    return size_t{chunks} * (4 * kWarp * sizeof(uint4) + kTileGroups * (sizeof(float2) + sizeof(float)));
  }
  __device__ Planes(std::byte* memory, uint32_t chunks)
      : codes(reinterpret_cast<uint4*>(memory)),
        groups(reinterpret_cast<float2*>(codes + size_t{chunks} * 4 * kWarp)),
        squares(reinterpret_cast<float*>(groups + size_t{chunks} * kTileGroups)) {}
};

/// Part of a row in the registers of a block: thread t has columns 8 (t + i kThreads) and seven more, so that 8 neighbours
/// have a group of 64. All loads are asked for before the first is used.
template <uint32_t kThreads>
struct RowPart {
  static constexpr uint32_t kLoads = 2, kColumns = 8 * kThreads * kLoads;
  float4 v[kLoads][2];

  __device__ static uint32_t column(uint32_t part, uint32_t i) {
    return part * kColumns + 8 * (threadIdx.x + i * kThreads);
  }
  __device__ static uint32_t parts(uint32_t columns) { return (columns + kColumns - 1) / kColumns; }
  /// `columns`: a multiple of 8. What kernels before have written is never read through the non-coherent path.
  template <bool kSealed = false>
  __device__ void load(const float* x, uint32_t part, uint32_t columns) {
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) {
      const uint32_t c = column(part, i);
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        const auto* from = reinterpret_cast<const float4*>(x + c) + h;
        v[i][h] = c < columns ? (kSealed ? __ldg(from) : __ldcg(from)) : make_float4(0, 0, 0, 0);
      }
    }
  }
};

/// The sum over 16 neighbouring lanes, neighbours first.
__device__ inline float sum_of_16(float value) {
  converge();
  for (uint32_t half = 1; half < 16; half *= 2) value += __shfl_xor_sync(~0u, value, half);
  return value;
}
__device__ inline float square_of(float4 v) { return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w); }

/// 1 / sqrt(mean of squares + eps) of a row, in every thread; `squares`: shared memory, a float a group. Fours of columns are
/// added as a tree of neighbours within 1,024, these in ascending order. `row` has part 0, before and after.
template <uint32_t kThreads>
__device__ float norm_factor(RowPart<kThreads>& row, const float* x, float eps, uint32_t columns,
                             float* squares) {
  const uint32_t chunks = tile_chunks(columns), parts = row.parts(columns);
  for (uint32_t part = parts; part-- > 0;) {
    if (parts > 1) row.load(x, part, columns);
#pragma unroll
    for (uint32_t i = 0; i < row.kLoads; ++i) {
      float square = square_of(row.v[i][0]) + square_of(row.v[i][1]);
      converge();
      for (uint32_t half = 1; half < 8; half *= 2) square += __shfl_xor_sync(~0u, square, half);
      const uint32_t c = row.column(part, i);
      if (threadIdx.x % 8 == 0 && c < chunks * kTileColumns) squares[c / kTileGroup] = square;
    }
  }
  __syncthreads();
  float sum = 0;
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    const float of_chunk = sum_of_16(squares[chunk * kTileGroups + threadIdx.x % kTileGroups]);
    sum = chunk == 0 ? of_chunk : sum + of_chunk;
  }
  return __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sum, static_cast<float>(columns)) + eps));
}

/// What a norm makes of four elements.
__device__ inline float4 normalized(float4 v, float factor, float4 gain) {
  return make_float4(v.x * factor * gain.x, v.y * factor * gain.y, v.z * factor * gain.z,
                     v.w * factor * gain.w);
}

/// Four values as integers, and these as bytes of the two planes.
struct Quantized {
  int sum;
  uint32_t high, low;

  __device__ Quantized(float4 v, float inverse) {
    const int q[4] = {__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse),
                      __float2int_rn(v.z * inverse), __float2int_rn(v.w * inverse)};
    sum = (q[0] + q[1]) + (q[2] + q[3]);
    // hi = (q + 128) >> 8 fits a byte; q - 256 hi has the low byte of q.
    high = __byte_perm(__byte_perm(q[0] + 128, q[1] + 128, 0x0051),
                       __byte_perm(q[2] + 128, q[3] + 128, 0x0051), 0x5410);
    low = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
  }
};

/// Quantizes a row, or where `gain` is not null its norm, with all threads of the block; the caller synchronizes. `row` and
/// `gains` have part 0 of both. `columns`: a multiple of 8. A group with a value that is not finite gets a NaN as its scale.
template <uint32_t kThreads>
__device__ void quantize(const Planes& planes, RowPart<kThreads>& row, const float* x,
                         RowPart<kThreads>& gains, const float* gain, float eps, uint32_t columns) {
  float factor = 1;
  if (gain != nullptr) factor = norm_factor(row, x, eps, columns, planes.squares);
  const uint32_t padded = tile_chunks(columns) * kTileColumns, parts = row.parts(columns);
  auto* words = reinterpret_cast<uint2*>(planes.codes);
  for (uint32_t part = 0; part < parts; ++part) {
    if (part != 0) row.load(x, part, columns);
    if (gain != nullptr && part != 0) gains.template load<true>(gain, part, columns);
#pragma unroll
    for (uint32_t i = 0; i < row.kLoads; ++i) {
      const uint32_t column = row.column(part, i);
      if (column >= padded) continue;  // by whole warps
      float4 a = row.v[i][0], b = row.v[i][1];
      if (gain != nullptr) {
        a = normalized(a, factor, gains.v[i][0]);
        b = normalized(b, factor, gains.v[i][1]);
      }
      // As integers, magnitudes keep their order and what is not finite is greatest.
      const auto magnitude = [](float f) { return __float_as_uint(f) & 0x7FFFFFFFu; };
      const auto most_of = [&](float4 f) {
        return max(max(magnitude(f.x), magnitude(f.y)), max(magnitude(f.z), magnitude(f.w)));
      };
      uint32_t greatest = max(most_of(a), most_of(b));
      converge();
      for (uint32_t half = 1; half < 8; half *= 2)
        greatest = max(greatest, __shfl_xor_sync(~0u, greatest, half));
      const bool finite = greatest < 0x7F800000u;
      const float most = __uint_as_float(greatest);
      const float inverse = finite && most > 1e-30f ? __fdiv_rn(kQuantRange, most) : 0.0f;
      const Quantized first(a, inverse), second(b, inverse);
      int sum = first.sum + second.sum;
      converge();
      for (uint32_t half = 1; half < 8; half *= 2) sum += __shfl_xor_sync(~0u, sum, half);
      // Words k and k + 1 of each plane, k being 0 or 2.
      const uint32_t chunk = column / kTileColumns, lane = column / 32 % kWarp, half = column / 16 % 2,
                     pair = column / 8 % 2;
      const auto at = [&](uint32_t piece) { return ((chunk * 4 + piece) * kWarp + lane) * 2 + pair; };
      words[at(half)] = make_uint2(first.high, second.high);
      words[at(2 + half)] = make_uint2(first.low, second.low);
      if (threadIdx.x % 8 == 0) {
        planes.groups[column / kTileGroup] = make_float2(
            finite ? most * (1.0f / kQuantRange) : __uint_as_float(0x7FFFFFFFu), static_cast<float>(sum));
      }
    }
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
    return group.x * __fmaf_rn(bf16_low(pair) * 0.0625f, static_cast<float>(d), bf16_high(pair) * group.y);
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

}  // namespace refrain::ops::decode
