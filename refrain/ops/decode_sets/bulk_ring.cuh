// Bulk copies to shared memory, asked for ahead and awaited one by one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/backend/cuda/device.cuh"

namespace refrain::ops::decode {

/// Copies of kBytes each of one warp, `depth` of them in flight, each with a barrier of its own. All lanes call alike.
template <uint32_t kBytes>
class BulkRing {
 public:
  static_assert(kBytes % 16 == 0);

  /// The warp's own: `memory`, depth * kBytes, aligned to 128; `barriers`: [depth]. `depth`: 1, 2 or 4.
  __device__ BulkRing(std::byte* memory, uint64_t* barriers, uint32_t depth)
      : memory_(memory), barriers_(shared_address(barriers)), mask_(depth - 1), shift_(depth / 2) {
    const uint32_t lane = threadIdx.x % backend::cuda::kWarp;
    if (lane < depth)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers_ + lane * 8) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
  }

  /// Starts the n-th copy; all lanes have read copy n - depth.
  __device__ void start(uint32_t n, const void* from) const {
    if (threadIdx.x % backend::cuda::kWarp == 0) {
      const uint32_t barrier = barriers_ + (n & mask_) * 8;
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(kBytes)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              shared_address(memory_ + (n & mask_) * kBytes)),
          "l"(from), "n"(kBytes), "r"(barrier)
          : "memory");
    }
    __syncwarp();
  }

  /// What the n-th copy has brought, once it has.
  __device__ const std::byte* wait(uint32_t n) const {
    asm volatile(
        "{\n .reg .pred done;\n WAIT_%=:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @!done "
        "bra WAIT_%=;\n}" ::"r"(barriers_ + (n & mask_) * 8),
        "r"(n >> shift_ & 1)
        : "memory");
    __syncwarp();
    return memory_ + (n & mask_) * kBytes;
  }

 private:
  __device__ static uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
  }
  std::byte* memory_;
  uint32_t barriers_;
  uint32_t mask_, shift_;
};

}  // namespace refrain::ops::decode
