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
/// Copies of kBytes each of one warp, `depth` of them in flight, each with a barrier of its own: taken one after another, the
/// place of the one taken being free for the copy that follows the others. All lanes call alike.
template <uint32_t kBytes>
class BulkRing {
 public:
  static_assert(kBytes % 16 == 0);

  /// The warp's own: `memory`, depth * kBytes, aligned to 128; `barriers`: [depth], at most a warp's lanes.
  __device__ BulkRing(std::byte* memory, uint64_t* barriers, uint32_t depth)
      : memory_(memory), barriers_(shared_address(barriers)), depth_(depth) {
    const uint32_t lane = threadIdx.x % backend::cuda::kWarp;
    if (lane < depth) init_barrier(barriers_ + lane * 8, 1);
    fence_barriers();
    __syncwarp();
  }

  /// Starts the copy to a place, of which all lanes have read what was there.
  __device__ void start(uint32_t place, const void* from) const {
    if (threadIdx.x % backend::cuda::kWarp == 0) {
      expect_bytes(barriers_ + place * 8, kBytes);
      bulk_copy(shared_address(memory_ + place * kBytes), from, kBytes, barriers_ + place * 8);
    }
    __syncwarp();
  }
  /// What the copy to the present place has brought, once it has.
  __device__ const std::byte* wait() const {
    await(barriers_ + place_ * 8, parity_);
    __syncwarp();
    return memory_ + place_ * kBytes;
  }
  __device__ uint32_t place() const { return place_; }
  __device__ void advance() {
    const bool last = ++place_ == depth_;
    place_ = last ? 0 : place_;
    parity_ ^= last;
  }

 private:
  std::byte* memory_;
  uint32_t barriers_, depth_, place_ = 0, parity_ = 0;
};

}  // namespace refrain::ops::decode
