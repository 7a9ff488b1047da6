// Products of 64 rows of weights by groups of four warps: the left operand from registers, the right one, which all four share,
// as it lies in shared memory.
#pragma once

#include "refrain/ops/decode_sets/product_stages.cuh"

namespace refrain::ops::decode {

/// Sums of a group of columns for 16 rows of weights by eight octets: of octet n this lane has 4 n and three more, as m16n8k16
/// has them.
struct GroupSums {
  static constexpr uint32_t kOctets = 8, kCount = 4 * kOctets;
  float of[kCount];

  /// Nothing of them is used, or changed, on the other side.
  __device__ void hold() {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) asm volatile("" : "+f"(of[i])::"memory");
  }
};

/// sums = a b, or sums += a b: a of 64 x 16 by rows, of which each warp has 16 as m16n8k16 has them, b of 16 x 64 as `b` tells.
/// In flight until it is awaited: all of it stays untouched.
template <bool kAdd>
__device__ void multiply_octets(GroupSums& sums, const uint32_t (&a)[4], uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  float(&d)[GroupSums::kCount] = sums.of;
  asm volatile(
      "{\n .reg .pred add;\n setp.ne.b32 add, %37, 0;\n"
      " wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd ? 1 : 0)
      : "memory");
#endif
}

/// What a warp of a group multiplies: 16 rows of weights by all octets, which lie as OctetRow<true> has left them. Octets that
/// are not there are multiplied all the same: what comes of them goes nowhere.
template <class Shape>
struct GroupProducts {
  static_assert(Shape::kOctets == GroupSums::kOctets && kPartGroups % 2 == 0);
  /// A stage, as lanes read it and as descriptors name it.
  struct Stage {
    const std::byte* at;
    uint32_t address;
  };
  uint32_t slot;     // of its rows of weights, this lane's first
  GroupCodes first;  // of a stage that has begun

  __device__ void begin(const Stage& stage) { first.load(stage.at, slot, 0); }
  /// Adds a stage that has begun to `sums`; `begin_next()` begins another.
  template <class BeginNext>
  __device__ void add_stage(const Stage& stage, typename Shape::Sums& sums, BeginNext begin_next) {
    GroupSums products[2];              // of one group and the next
    uint32_t codes[2][kGroupSteps][4];  // the same
    typename Shape::Sums begun;         // what group 0 of a pair has come to
    first.expand(codes[0]);
    start(stage, 0, codes[0], products[0]);
    GroupCodes next;
    next.load(stage.at, slot, 1);
    // What comes from shared memory is asked for ahead of what takes its time.
#pragma unroll
    for (uint32_t g = 0; g < kPartGroups; ++g) {
      const PairScales scales[2] = {PairScales::load(stage.at, slot, g / 2),
                                    PairScales::load(stage.at, slot + 8, g / 2)};
      float4 values[GroupSums::kOctets];
#pragma unroll
      for (uint32_t n = 0; n < GroupSums::kOctets; ++n)
        values[n] = octet_values(octet(stage.at, n, g / 2), g);
      if (g + 1 < kPartGroups) {
        next.expand(codes[(g + 1) % 2]);
        start(stage, g + 1, codes[(g + 1) % 2], products[(g + 1) % 2]);
        if (g + 2 < kPartGroups) next.load(stage.at, slot, g + 2);
        await_all_but<1>();
      } else {
        await_all_but<0>();
        begin_next();
      }
      products[g % 2].hold();
#pragma unroll
      for (uint32_t n = 0; n < GroupSums::kOctets; ++n) {
        const float* d = products[g % 2].of + 4 * n;
        PairScales::take(scales, g, make_float4(d[0], d[1], d[2], d[3]), values[n], begun[n], sums[n]);
      }
    }
  }

 private:
  __device__ static const std::byte* octet(const std::byte* stage, uint32_t n, uint32_t pair) {
    return stage + Shape::kOctetsAt + n * Shape::kOctetStageBytes + pair * kOctetPairBytes;
  }
  __device__ static void start(const Stage& stage, uint32_t g, uint32_t (&codes)[kGroupSteps][4],
                               GroupSums& to) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    // Of 8 rows by 16 bytes each 128 bytes: the next 8 of k behind them, the next 8 rows an octet further.
    static_assert(Shape::kOctetStageBytes % 16 == 0 && kOctetPairBytes % 16 == 0);
    const uint64_t layout = uint64_t{128 >> 4} << 16 | uint64_t{Shape::kOctetStageBytes >> 4} << 32;
    const uint64_t b = (layout | ((stage.address + Shape::kOctetsAt) & 0x3FFFFu) >> 4) +
                       (g / 2 * kOctetPairBytes + g % 2 * kOctetGroupBytes) / 16;
    to.hold();
#pragma unroll
    for (uint32_t m = 0; m < kGroupSteps; ++m) {
#pragma unroll
      for (uint32_t& word : codes[m]) asm volatile("" : "+r"(word)::"memory");
    }
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    multiply_octets<false>(to, codes[0], b);
#pragma unroll
    for (uint32_t m = 1; m < kGroupSteps; ++m) multiply_octets<true>(to, codes[m], b + m * (256 / 16));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
#pragma unroll
    for (uint32_t n = 0; n < GroupSums::kOctets; ++n) {
      const auto* x = reinterpret_cast<const uint32_t*>(octet(stage.at, n, g / 2) + g % 2 * kOctetGroupBytes);
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (uint32_t m = 0; m < kGroupSteps; ++m) {
        const uint32_t* b = x + m * 2 * kWarp + threadIdx.x % kWarp;
        sum = multiply_codes(codes[m], b[0], b[kWarp], sum);
      }
      to.of[4 * n] = sum.x;
      to.of[4 * n + 1] = sum.y;
      to.of[4 * n + 2] = sum.z;
      to.of[4 * n + 3] = sum.w;
    }
#endif
  }
  template <uint32_t kCount>
  __device__ static void await_all_but() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kCount) : "memory");
#endif
  }
};

}  // namespace refrain::ops::decode
