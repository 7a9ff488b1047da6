// Memory of one GPU, memory of the host that it sees, and copies between what the host reaches and what it does not.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>

#include "refrain/backend/backend.h"
#include "refrain/backend/cuda/health.h"

namespace refrain::backend::cuda {

class Memory {
 public:
  Memory(int ordinal, Health& health);
  ~Memory();

  const Allocation* allocate(const BufferSpec& spec);
  void release(const Allocation* allocation) noexcept;
  MemoryUsage usage() const;
  void write(const BufferView& to, std::span<const std::byte> from);
  void read(const BufferView& from, std::span<std::byte> to);

 private:
  struct Block : Allocation {
    MemoryKind kind = MemoryKind::device;
  };

  void* take(const BufferSpec& spec, Block& block);
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const char* what);
  void expect(const BufferSpec& spec, cudaError_t result);

  const int ordinal_;
  Health& health_;
  cudaStream_t stream_ = nullptr;  // of copies, and of zeroing
  mutable std::mutex mutex_;
  std::unordered_map<const Allocation*, std::unique_ptr<Block>> blocks_;
  uint64_t last_id_ = 0;
  size_t used_bytes_ = 0;
  size_t imported_bytes_ = 0;
};

/// Where the bytes of a view are for the device.
inline std::byte* device_bytes(const BufferView& view) {
  return reinterpret_cast<std::byte*>(view.allocation->device_address) + view.offset_bytes;
}

}  // namespace refrain::backend::cuda
