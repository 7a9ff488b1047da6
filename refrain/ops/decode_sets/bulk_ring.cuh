// Bulk copies to shared memory, asked for ahead and awaited one by one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/ops/decode_sets/barriers.cuh"

namespace refrain::ops::decode {

/// Multiples of 16 bytes, from and to addresses that are multiples of 16.
__device__ inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
/// Copies of kBytes each of one warp, `depth` of them in flight, each with a barrier of its own. All lanes call alike.
template <uint32_t kBytes>
class BulkRing {
 public:
  static_assert(kBytes % 16 == 0);

  /// The warp's own: `memory`, depth * kBytes, aligned to 128; `barriers`: [depth]. `depth`: 1, 2 or 4.
  __device__ BulkRing(std::byte* memory, uint64_t* barriers, uint32_t depth)
      : memory_(memory), barriers_(shared_address(barriers)), mask_(depth - 1), shift_(depth / 2) {
    const uint32_t lane = threadIdx.x % backend::cuda::kWarp;
    if (lane < depth) init_barrier(barriers_ + lane * 8, 1);
    fence_barriers();
    __syncwarp();
  }

  /// Starts the n-th copy; all lanes have read copy n - depth.
  __device__ void start(uint32_t n, const void* from) const {
    if (threadIdx.x % backend::cuda::kWarp == 0) {
      const uint32_t barrier = barriers_ + (n & mask_) * 8;
      expect_bytes(barrier, kBytes);
      bulk_copy(shared_address(memory_ + (n & mask_) * kBytes), from, kBytes, barrier);
    }
    __syncwarp();
  }

  /// What the n-th copy has brought, once it has.
  __device__ const std::byte* wait(uint32_t n) const {
    await(barriers_ + (n & mask_) * 8, n >> shift_ & 1);
    __syncwarp();
    return memory_ + (n & mask_) * kBytes;
  }

 private:
  std::byte* memory_;
  uint32_t barriers_;
  uint32_t mask_, shift_;
};

}  // namespace refrain::ops::decode
