// What CUDA kernels share: how a command begins and ends, and reductions of one fixed order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/backend/cuda/kernel_entry.h"

namespace refrain::backend::cuda {

inline constexpr uint32_t kWarp = 32;

/// Lets the commands behind this one begin to launch, where they are joined by programmatic edges.
__device__ inline void trigger_successors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Returns when the command before this one has completed and what it wrote is visible. Images for older hardware lack it;
/// the backend gives them full edges.
__device__ inline void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline unsigned long long global_time_ns() {
  unsigned long long time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time)::"memory");
  return time;
}

/// Lanes of a warp go on together. What lanes did apart stays apart until something joins them, and shuffles of a warp in
/// parts take ten times as long.
__device__ inline void converge() { __syncwarp(); }

/// When a kernel lets the commands behind it begin: KernelEntry::triggers_late says the same.
enum class Trigger : uint8_t { early, late };

/// A command's life in one thread: first in each kernel, before any other access to memory; blocks have one dimension.
class Running {
 public:
  /// Prefetch() may load sealed arguments ahead of the wait, and where state.ahead says so the entry's reads_ahead; it
  /// stores nothing to memory that others see.
  template <class Prefetch>
  __device__ Running(const CommandState& state, Prefetch prefetch, Trigger trigger = Trigger::early)
      : stamp_(state.stamp) {
    if (stamp_ != nullptr && threadIdx.x == 0) atomicMax(&stamp_->not_begin, ~global_time_ns());
    if (trigger == Trigger::early) trigger_successors();
    uint32_t live = state.rows;
    if (state.live_ahead) live = __ldcg(state.live);
    prefetch();
    wait_for_predecessors();
    if (trigger == Trigger::late) trigger_successors();
    if (stamp_ != nullptr && threadIdx.x == 0) atomicMax(&stamp_->not_ready, ~global_time_ns());
    if (state.live != nullptr && !state.live_ahead) live = __ldcg(state.live);
    rows = live < state.rows ? live : state.rows;
    converge();
  }
  __device__ explicit Running(const CommandState& state, Trigger trigger = Trigger::early)
      : Running(
            state, [] {}, trigger) {}
  __device__ ~Running() {
    if (stamp_ != nullptr && threadIdx.x == 0) atomicMax(&stamp_->end, global_time_ns());
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  uint32_t rows = 0;  ///< to compute

 private:
  Stamp* stamp_;
};

/// The sum over a warp in every lane: lanes in halves.
__device__ inline float warp_sum(float value) {
  converge();
  for (uint32_t half = kWarp / 2; half > 0; half /= 2) value += __shfl_xor_sync(~0u, value, half);
  return value;
}

__device__ inline float warp_max(float value) {
  converge();
  for (uint32_t half = kWarp / 2; half > 0; half /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, half));
  return value;
}

/// Joins one value of each of kThreads threads by `join`, associative or not, always in the same order: lanes of a warp in
/// halves, then warps in halves. Every thread gets the result. `shared` holds a value a warp.
template <uint32_t kThreads, class T, class Join>
__device__ T block_join(T value, T* shared, Join join) {
  constexpr uint32_t kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0 && (kWarps & (kWarps - 1)) == 0);
  for (uint32_t half = kWarp / 2; half > 0; half /= 2) value = join(value, __shfl_xor_sync(~0u, value, half));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  for (uint32_t half = kWarps / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + half]);
  }
  __syncthreads();
  return shared[0];
}

}  // namespace refrain::backend::cuda
