// Products of several rows, by tensor cores, with the bits of those of one row (product.cuh): a kernel quantizes the rows once,
// another multiplies 128 rows of weights with 8 or 64 of these. Where that makes fewer blocks than the GPU has room for, blocks
// take some of the columns each, and the last to end adds up what all have left.
//
// Sums of a group are exact integers, so that only what follows them has an order: sums of 16 groups as a tree, which is
// walked from left to right here and keeps one value for each of its levels, then 1,024 columns after 1,024. Values of the
// upper levels, rarely touched, lie in shared memory: registers are for more products at once.
#pragma once

#include "refrain/ops/decode_sets/product_stages.cuh"

namespace refrain::ops::decode {

/// a b + c: a of 16 x 32 unsigned by rows, b of 32 x 8 signed by columns.
__device__ inline int4 multiply_codes(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int4 c) {
  int4 d;
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, "
      "%11, %12, %13};"
      : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c.x), "r"(c.y), "r"(c.z), "r"(c.w));
  return d;
}

__device__ inline float4 added(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/// What a warp multiplies, and the sums of its last 256 columns.
template <class Shape>
struct ManyProducts {
  uint32_t slot;                                    // of its rows of weights, this lane's first
  uint32_t first;                                   // octet; it has every kWarpsN-th from there
  float4 sums[Shape::kTilesM][Shape::kWarpOctets];  // rows of weights l / 4 and 8 more, two rows each

  __device__ ManyProducts()
      : slot(threadIdx.x / kWarp % Shape::kWarpsM * Shape::kTilesM * 16 + threadIdx.x % kWarp / 4),
        first(threadIdx.x / kWarp / Shape::kWarpsM) {}

  /// `octets`: that are there; kWhole: all.
  template <bool kWhole>
  __device__ void add_stage(const std::byte* from, uint32_t octets) {
    const uint32_t lane = threadIdx.x % kWarp, quad = lane % 4;
    float4 left[Shape::kTilesM][Shape::kWarpOctets];
#pragma unroll
    for (uint32_t g = 0; g < Shape::kStageGroups; ++g) {
      uint32_t codes[Shape::kTilesM][2][4];  // times 16
      float scale[Shape::kTilesM][2], bias[Shape::kTilesM][2];
#pragma unroll
      for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
          const uint32_t row = slot + m * 16 + h * 8;
#pragma unroll
          for (uint32_t k = 0; k < 2; ++k) {
            const auto word = *reinterpret_cast<const uint32_t*>(from + row * Shape::kRowStride + g * 32 +
                                                                 k * 16 + quad * 4);
            codes[m][k][h] = word << 4 & 0xF0F0F0F0u;
            codes[m][k][h + 2] = word & 0xF0F0F0F0u;
          }
          const auto pair = *reinterpret_cast<const uint32_t*>(from + Shape::kScales +
                                                               row / kTileRows * Shape::kTileScalesBytes +
                                                               g * kTileRows * 4 + row % kTileRows * 4);
          scale[m][h] = bf16_low(pair);
          bias[m][h] = bf16_high(pair);
        }
      }
#pragma unroll
      for (uint32_t n = 0; n < Shape::kWarpOctets; ++n) {
        const uint32_t octet = n * Shape::kWarpsN + first;
        if (!kWhole && octet >= octets) break;
        const std::byte* x = from + Shape::kOctetsAt + octet * Shape::kOctetStageBytes + g * kOctetBytes;
        const uint4 high = reinterpret_cast<const uint4*>(x)[lane],
                    low = reinterpret_cast<const uint4*>(x + kOctetPlaneBytes)[lane];
        const float4 groups = reinterpret_cast<const float4*>(x + 2 * kOctetPlaneBytes)[quad];
#pragma unroll
        for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
          const int4 none = make_int4(0, 0, 0, 0);
          const int4 upper =
              multiply_codes(codes[m][1], high.z, high.w, multiply_codes(codes[m][0], high.x, high.y, none));
          const int4 lower =
              multiply_codes(codes[m][1], low.z, low.w, multiply_codes(codes[m][0], low.x, low.y, none));
          const auto value = [&](uint32_t h, float s, float ones, int hi, int lo) {
            return s * __fmaf_rn(scale[m][h], static_cast<float>(hi * 256 + lo), bias[m][h] * ones);
          };
          const float4 now = make_float4(
              value(0, groups.x, groups.y, upper.x, lower.x), value(0, groups.z, groups.w, upper.y, lower.y),
              value(1, groups.x, groups.y, upper.z, lower.z), value(1, groups.z, groups.w, upper.w, lower.w));
          if (g == 0) {
            sums[m][n] = now;
          } else if (g == 1) {
            sums[m][n] = added(sums[m][n], now);
          } else if (g == 2) {
            left[m][n] = now;
          } else {
            sums[m][n] = added(sums[m][n], added(left[m][n], now));
          }
        }
      }
    }
  }
  template <class Do>
  __device__ static void each(Do act) {
#pragma unroll
    for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (uint32_t n = 0; n < Shape::kWarpOctets; ++n) act(m, n);
    }
  }
};

/// Where the block's part lies of what blocks leave each other.
template <class Shape>
__device__ float4* partial_of(const ProductParameters& p, uint32_t chunk, uint32_t blocks, uint32_t block) {
  return reinterpret_cast<float4*>(p.state.workspace + octets_bytes(p.state.rows, p.columns) +
                                   (size_t{chunk} * blocks + block) * Shape::kPartialBytes) +
         threadIdx.x;
}

/// `total(m, n)`: this thread's sums.
template <class Shape, Ending kEnding, class Total>
__device__ void finish_item(const ProductParameters& p, const ManyItem<Shape, kEnding>& item,
                            const ManyProducts<Shape>& products, uint32_t rows, Total total) {
  const uint32_t quad = threadIdx.x % 4;
#pragma unroll
  for (uint32_t m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
    for (uint32_t h = 0; h < (kEnding == Ending::gate ? 1 : 2); ++h) {
      const uint32_t row = products.slot + m * 16 + h * 8;
      const uint32_t own = kEnding == Ending::gate ? row / 16 * 8 + row % 8 : row;
      if (own / kTileRows >= item.work.own) continue;
      const auto tile = item.work.tile(p, own / kTileRows);
      const uint32_t output = tile.index * kTileRows + own % kTileRows, outputs = p.rows[tile.weight];
      if (output >= outputs) continue;
#pragma unroll
      for (uint32_t n = 0; n < Shape::kWarpOctets; ++n) {
        const float4 sums = total(m, n);
#pragma unroll
        for (uint32_t e = 0; e < 2; ++e) {
          const uint32_t r = item.first_row + (n * Shape::kWarpsN + products.first) * kOctet + quad * 2 + e;
          if (r >= rows) continue;
          const float upper = e == 0 ? sums.x : sums.y, lower = e == 0 ? sums.z : sums.w;
          const size_t to = size_t{r} * outputs + output;
          float result = h == 0 ? upper : lower;
          if constexpr (kEnding == Ending::gate) result = gated(upper, lower);
          if constexpr (kEnding == Ending::add) result = __ldcg(p.residual + to) + result;
          p.outputs[tile.weight][to] = result;
        }
      }
    }
  }
}

/// By the warps that copy: all stages of the block's items, in their order.
template <class Shape, Ending kEnding>
__device__ void copy_items(const ProductParameters& p, const ManyStages<Shape>& stages, uint32_t rows) {
  const uint32_t lane = threadIdx.x % kWarp;
  const size_t octet_bytes = size_t{p.chunks} * kTileGroups * kOctetBytes;
  uint32_t n = 0;
  for (uint32_t i = blockIdx.x; i < p.items; i += gridDim.x) {
    const ManyItem<Shape, kEnding> item(p, i, rows);
    if (item.octets == 0) continue;
    const std::byte* const tile = item.tile(p, lane);
    const std::byte* const octets = p.state.workspace + item.first_row / kOctet * octet_bytes;
    for (uint32_t stage = item.begin; stage < item.end; ++stage, ++n) {
      stages.await_empty(n);
      // Those of the first item have been asked for ahead.
      if (i != blockIdx.x || n >= Shape::kStages) stages.copy_weights(n, stage, tile, p.weights[0]);
      stages.copy_octets(n, octets + size_t{stage} * Shape::kOctetStageBytes, octet_bytes, item.octets);
    }
  }
}

template <class Shape, Ending kEnding>
__global__ void __launch_bounds__(Shape::kThreads + kCopyWarps * kWarp, Shape::kPerSm)
    product_many(const __grid_constant__ ProductParameters p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  using Item = ManyItem<Shape, kEnding>;
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ uint64_t barriers[2 * Shape::kStages];
  __shared__ bool last;
  const uint32_t lane = threadIdx.x % kWarp;
  const bool copies = threadIdx.x >= Shape::kThreads;
  const ManyStages<Shape> stages(memory, barriers);
  if (threadIdx.x == 0) stages.init();
  const auto prefetch = [&] {
    if (!copies) return;
    const Item item(p, blockIdx.x, 0);
    const std::byte* const tile = item.tile(p, lane);
    for (uint32_t n = 0; n < min(Shape::kStages, item.end - item.begin); ++n)
      stages.copy_weights(n, item.begin + n, tile, p.weights[0]);
  };
  const Running run(p.state, prefetch, trigger_of(kEnding));
  __syncthreads();  // the barriers
  if (copies) {
    take_registers<Shape, false>();
    // What is on its way has its place, also where the first item has no rows.
    if (Item(p, blockIdx.x, run.rows).octets == 0) asm volatile("cp.async.wait_all;" ::: "memory");
    copy_items<Shape, kEnding>(p, stages, run.rows);
    asm volatile("cp.async.wait_all;" ::: "memory");
    return;
  }

  take_registers<Shape, true>();

  ManyProducts<Shape> products;
  float4 k256[Shape::kTilesM][Shape::kWarpOctets];
  auto* const level = reinterpret_cast<float4*>(memory + Shape::kStages * Shape::kStageBytes) + threadIdx.x;
  const auto at = [](uint32_t m, uint32_t n) { return (m * Shape::kWarpOctets + n) * Shape::kThreads; };
  const auto k512 = [&](uint32_t m, uint32_t n) -> float4& { return level[at(m, n)]; };
  const auto total = [&](uint32_t m, uint32_t n) -> float4& {
    return level[at(m, n) + Shape::kFragments * Shape::kThreads];
  };
  const uint32_t blocks = p.items / p.splits;
  uint32_t n_of_all = 0;
#pragma unroll 1
  for (uint32_t i = blockIdx.x; i < p.items; i += gridDim.x) {
    const Item item(p, i, run.rows);
    if (item.octets == 0) continue;
#pragma unroll 1
    for (uint32_t stage = item.begin; stage < item.end; ++stage, ++n_of_all) {
      stages.await_full(n_of_all);
      const std::byte* from = memory + stages.slot(n_of_all) * Shape::kStageBytes;
      item.octets == Shape::kOctets ? products.template add_stage<true>(from, item.octets)
                                    : products.template add_stage<false>(from, item.octets);
      stages.release(n_of_all);
      const uint32_t quarter = stage % Item::kStagesOfChunk;
      if (quarter % 2 == 0) {
        products.each([&](uint32_t m, uint32_t n) { k256[m][n] = products.sums[m][n]; });
      } else if (quarter == 1) {
        products.each([&](uint32_t m, uint32_t n) { k512(m, n) = added(k256[m][n], products.sums[m][n]); });
      } else {
        products.each([&](uint32_t m, uint32_t n) {
          k256[m][n] = added(k512(m, n), added(k256[m][n], products.sums[m][n]));
        });
        if (p.splits > 1) {
          float4* const to = partial_of<Shape>(p, stage / Item::kStagesOfChunk, blocks, item.block);
          products.each([&](uint32_t m, uint32_t n) { __stcg(to + at(m, n), k256[m][n]); });
        } else if (stage < Item::kStagesOfChunk) {
          products.each([&](uint32_t m, uint32_t n) { total(m, n) = k256[m][n]; });
        } else {
          products.each([&](uint32_t m, uint32_t n) { total(m, n) = added(total(m, n), k256[m][n]); });
        }
      }
    }
    if (p.splits > 1) {
      const auto meet = [] { asm volatile("bar.sync 1, %0;" ::"n"(Shape::kThreads) : "memory"); };
      __threadfence();
      meet();
      if (threadIdx.x == 0) {
        last = atomicAdd(p.state.tickets + item.block, 1) == p.splits - 1;
        if (last) p.state.tickets[item.block] = 0;
        __threadfence();
      }
      meet();
      if (!last) continue;
      for (uint32_t chunk = 0; chunk < p.chunks; ++chunk) {
        const float4* from = partial_of<Shape>(p, chunk, blocks, item.block);
        products.each([&](uint32_t m, uint32_t n) {
          const float4 part = __ldcg(from + at(m, n));
          total(m, n) = chunk == 0 ? part : added(total(m, n), part);
        });
      }
    }
    finish_item(p, item, products, run.rows, total);
  }
#endif
}

}  // namespace refrain::ops::decode
