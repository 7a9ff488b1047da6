// Products of several rows, by tensor cores, with the bits of those of one row (product.cuh): a kernel quantizes the rows once,
// another multiplies 128 rows of weights with 8 or 64 of these. Where that makes fewer blocks than the GPU has room for, blocks
// take some of the columns each, and the last to end adds up what all have left.
//
// Sums of a group are exact, so that only what follows them has an order: four pairs of groups, two of these, 1,024 columns
// after 1,024. The upper sums, rarely touched, lie in shared memory: registers are for more products at once.
#pragma once

#include <type_traits>

#include "refrain/ops/decode_sets/product_groups.cuh"

namespace refrain::ops::decode {

/// What a warp multiplies: 16 rows of weights by an octet, which lies as OctetRow<false> has left it.
template <class Shape>
struct OctetProducts {
  static_assert(Shape::kOctets == 1);
  uint32_t slot;  // of its rows of weights, this lane's first

  /// Adds a stage to `sums`.
  __device__ void add_stage(const std::byte* from, float4& sums) const {
    float4 begun;  // what group 0 of a pair has come to
#pragma unroll
    for (uint32_t g = 0; g < kPartGroups; ++g) {
      uint32_t codes[kGroupSteps][4];
      GroupCodes packed;
      packed.load(from, slot, g);
      packed.expand(codes);
      const PairScales scales[2] = {PairScales::load(from, slot, g / 2),
                                    PairScales::load(from, slot + 8, g / 2)};
      const std::byte* pair = from + Shape::kOctetsAt + g / 2 * kOctetPairBytes;
      const auto* steps =
          reinterpret_cast<const uint4*>(pair + g % 2 * kOctetGroupBytes) + threadIdx.x % kWarp;
      float4 d = make_float4(0, 0, 0, 0);
#pragma unroll
      for (uint32_t k = 0; k < kGroupSteps / 2; ++k) {
        const uint4 x = steps[k * kWarp];
        d = multiply_codes(codes[2 * k], x.x, x.y, d);
        d = multiply_codes(codes[2 * k + 1], x.z, x.w, d);
      }
      PairScales::take(scales, g, d, octet_values(pair, g), begun, sums);
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

/// `slot`: this thread's first row of weights; `total(n)`: its sums by octet n.
template <class Shape, Ending kEnding, class Total>
__device__ void finish_item(const ProductParameters& p, const ManyItem<Shape, kEnding>& item, uint32_t slot,
                            uint32_t rows, Total total) {
#pragma unroll
  for (uint32_t h = 0; h < (kEnding == Ending::gate ? 1 : 2); ++h) {
    const uint32_t row = slot + h * 8;
    const uint32_t own = kEnding == Ending::gate ? row / 16 * 8 + row % 8 : row;
    if (own / kTileRows >= item.work.own) continue;
    const auto tile = item.work.tile(p, own / kTileRows);
    const uint32_t output = tile.index * kTileRows + own % kTileRows, outputs = p.rows[tile.weight];
    if (output >= outputs) continue;
    const auto each_row = [&](auto act) {
#pragma unroll
      for (uint32_t i = 0; i < 2 * Shape::kOctets; ++i) {
        const uint32_t r = item.first_row + i / 2 * kOctet + threadIdx.x % 4 * 2 + i % 2;
        if (r < rows) act(i, size_t{r} * outputs + output);
      }
    };
    // All are asked for before the first is used.
    [[maybe_unused]] float residuals[2 * Shape::kOctets];
    if constexpr (kEnding == Ending::add)
      each_row([&](uint32_t i, size_t at) { residuals[i] = __ldcg(p.residual + at); });
    each_row([&](uint32_t i, size_t at) {
      const float4 sums = total(i / 2);
      const float upper = i % 2 == 0 ? sums.x : sums.y, lower = i % 2 == 0 ? sums.z : sums.w;
      float result = h == 0 ? upper : lower;
      if constexpr (kEnding == Ending::gate) result = gated(upper, lower);
      if constexpr (kEnding == Ending::add) result = residuals[i] + result;
      p.outputs[tile.weight][at] = result;
    });
  }
}

/// Of all items of the block.
template <class Shape, Ending kEnding>
__device__ uint32_t stages_of_block(const ProductParameters& p, uint32_t rows) {
  uint32_t count = 0;
#pragma unroll 1
  for (uint32_t i = blockIdx.x; i < p.items; i += gridDim.x) {
    const ManyItem<Shape, kEnding> item(p, i, rows);
    if (item.octets != 0) count += item.end - item.begin;
  }
  return count;
}

/// By the warps that copy: all stages of the block's items, in their order.
template <class Shape, Ending kEnding>
__device__ void copy_items(const ProductParameters& p, const ManyStages<Shape>& stages, uint32_t rows) {
  const size_t octet_bytes = size_t{p.chunks} * kTilePairs * kOctetPairBytes;
  uint32_t n = 0;
  for (uint32_t i = blockIdx.x; i < p.items; i += gridDim.x) {
    const ManyItem<Shape, kEnding> item(p, i, rows);
    if (item.octets == 0) continue;
    const std::byte* const tile = item.tile(p, stages.tile_of_lane());
    const std::byte* const octets = p.state.workspace + item.first_row / kOctet * octet_bytes;
    for (uint32_t stage = item.begin; stage < item.end; ++stage, ++n) {
      stages.await_empty(n);
      stages.copy_octets(n, octets + size_t{stage} * Shape::kOctetStageBytes, octet_bytes, item.octets);
      // Those of the first item have been asked for ahead.
      if (i != blockIdx.x || n >= Shape::kStages) stages.copy_weights(n, stage, tile, p.weights[0]);
      stages.end_copies(n);
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
  const bool copies = threadIdx.x >= Shape::kThreads;
  const ManyStages<Shape> stages(memory, barriers);
  if (threadIdx.x == 0) stages.init();
  const auto prefetch = [&] {
    if (!copies) return;
    const Item item(p, blockIdx.x, 0);
    const std::byte* const tile = item.tile(p, stages.tile_of_lane());
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

  std::conditional_t<Shape::kWarpGroups, GroupProducts<Shape>, OctetProducts<Shape>> products;
  products.slot = threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4;
  using Sums = typename Shape::Sums;
  auto* const level = reinterpret_cast<float4*>(memory + Shape::kStages * Shape::kStageBytes) + threadIdx.x;
  const auto k512 = [&](uint32_t n) -> float4& { return level[n * Shape::kThreads]; };
  const auto total = [&](uint32_t n) -> float4& { return level[(Shape::kOctets + n) * Shape::kThreads]; };
  const auto each = [](auto act) {
#pragma unroll
    for (uint32_t n = 0; n < Shape::kOctets; ++n) act(n);
  };
  const uint32_t blocks = p.items / p.splits, all = stages_of_block<Shape, kEnding>(p, run.rows);
  if (all == 0) return;
  uint32_t done = 0;  // stages
  const auto stage_at = [&](uint32_t n) { return memory + stages.slot(n) * Shape::kStageBytes; };
  const auto begin = [&](uint32_t n) {
    stages.await_full(n);
    if constexpr (Shape::kWarpGroups) products.begin({stage_at(n), stages.address(n)});
  };
  const auto add_stage = [&](Sums& sums) {
    // Behind the last one the same begins again, for nothing.
    const auto begin_next = [&] { begin(min(done + 1, all - 1)); };
    if constexpr (Shape::kWarpGroups) {
      products.add_stage({stage_at(done), stages.address(done)}, sums, begin_next);
      stages.release(done);
    } else {
      products.add_stage(stage_at(done), sums[0]);
      stages.release(done);
      begin_next();
    }
    ++done;
  };
  // Whether this block is the last to end of those that divide the item's columns: it then has what all have left.
  const auto join = [&](const Item& item) {
    const auto meet = [] { asm volatile("bar.sync 1, %0;" ::"n"(Shape::kThreads) : "memory"); };
    __threadfence();
    meet();
    if (threadIdx.x == 0) {
      last = atomicAdd(p.state.tickets + item.block, 1) == p.splits - 1;
      if (last) p.state.tickets[item.block] = 0;
      __threadfence();
    }
    meet();
    if (!last) return false;
    for (uint32_t chunk = 0; chunk < p.chunks; ++chunk) {
      const float4* from = partial_of<Shape>(p, chunk, blocks, item.block);
      each([&](uint32_t n) {
        const float4 part = __ldcg(from + n * Shape::kThreads);
        total(n) = chunk == 0 ? part : added(total(n), part);
      });
    }
    return true;
  };
  // What else is to know of an item is found out again when it ends: registers are for products.
  uint32_t index = blockIdx.x, stage = 0, end = 0;
  const auto begin_item = [&] {
    Item item(p, index, run.rows);
    while (item.octets == 0) item = Item(p, index += gridDim.x, run.rows);
    stage = item.begin;
    end = item.end;
  };
  begin_item();
  begin(0);
  Sums sums = {};  // of up to 512 columns
#pragma unroll 1
  while (true) {
    add_stage(sums);
    ++stage;
    if (stage % 2 == 1) continue;
    if (stage % kTileParts == 2) {
      each([&](uint32_t n) { k512(n) = sums[n]; });
    } else {
      const auto chunk = [&](uint32_t n) { return added(k512(n), sums[n]); };
      if (p.splits > 1) {
        const Item item(p, index, run.rows);
        float4* const to = partial_of<Shape>(p, (stage - 1) / kTileParts, blocks, item.block);
        each([&](uint32_t n) { __stcg(to + n * Shape::kThreads, chunk(n)); });
      } else if (stage == kTileParts) {
        each([&](uint32_t n) { total(n) = chunk(n); });
      } else {
        each([&](uint32_t n) { total(n) = added(total(n), chunk(n)); });
      }
    }
    each([&](uint32_t n) { sums[n] = make_float4(0, 0, 0, 0); });
    if (stage < end) continue;
    const Item item(p, index, run.rows);
    if (p.splits == 1 || join(item)) finish_item(p, item, products.slot, run.rows, total);
    if (done == all) return;
    index += gridDim.x;
    begin_item();
  }
#endif
}

}  // namespace refrain::ops::decode
