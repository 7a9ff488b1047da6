// The memory of the CPU backend: zeroed, aligned allocations and imports of host memory. Knows nothing of
// work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "refrain/backend/backend.h"

namespace refrain::backend::cpu {

inline constexpr size_t kAlignmentBytes = 64;  // a cache line, and the widest vector register

class Memory {
 public:
  Memory(const std::string& system_root, size_t limit_bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  const Allocation* allocate(const BufferSpec& spec);
  void release(const Allocation* allocation) noexcept;
  /// Passes the hint to the operating system; what it refuses is ignored.
  void advise(const BufferView& view, Advice advice);
  MemoryUsage usage() const;

 private:
  struct Block;

  // What the machine offered at opening. Pages that nobody has touched do not lower what it offers later, so
  // the sum of all requests is what is held against it.
  const size_t budget_bytes_;
  mutable std::mutex mutex_;
  std::unordered_map<const Allocation*, std::unique_ptr<Block>> blocks_;
  uint64_t last_id_ = 0;
  size_t used_bytes_ = 0;
};

}  // namespace refrain::backend::cpu
