// Pinned memory for the bytes of updates: filled at submit, read by copies of the stream, used again once the submission has
// completed. In steady state two blocks take turns.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/backend/cuda/health.h"

namespace refrain::backend::cuda {

class Staging {
 public:
  /// Memory for `bytes` of submission `value`; values ascend. `completed`: all up to it have completed.
  std::byte* take(size_t bytes, uint64_t value, uint64_t completed, Health& health) {
    if (blocks_.empty() || blocks_[current_].bytes - blocks_[current_].used < bytes)
      next(bytes, completed, health);
    Block& block = blocks_[current_];
    std::byte* const place = block.memory + block.used;
    block.used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    block.used = std::min(block.used, block.bytes);
    block.value = value;
    return place;
  }

  void free() noexcept {
    for (const Block& block : blocks_) cudaFreeHost(block.memory);
    blocks_.clear();
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kBlockBytes = size_t{1} << 20;
  struct Block {
    std::byte* memory = nullptr;
    size_t bytes = 0;
    size_t used = 0;
    uint64_t value = 0;  // the last submission that took some
  };

  void next(size_t bytes, uint64_t completed, Health& health) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].value > completed || blocks_[i].bytes < bytes) continue;
      blocks_[i].used = 0;
      current_ = i;
      return;
    }
    Block block;
    block.bytes = std::max(bytes, kBlockBytes);
    blocks_.reserve(blocks_.size() + 1);
    void* memory = nullptr;
    health.check(cudaHostAlloc(&memory, block.bytes, cudaHostAllocPortable), "memory for updates");
    block.memory = static_cast<std::byte*>(memory);
    blocks_.push_back(block);
    current_ = blocks_.size() - 1;
  }

  std::vector<Block> blocks_;
  size_t current_ = 0;
};

}  // namespace refrain::backend::cuda
