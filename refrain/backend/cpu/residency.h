// Which pages of the process lie in physical memory, and which must stay there. Knows nothing of allocations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "refrain/backend/backend.h"

namespace refrain::backend::cpu {

/// Whole pages within [begin, end) that are to stay in memory.
class LockedPages {
 public:
  /// Locks as much as the system allows, from the front.
  void lock(uintptr_t begin, uintptr_t end);
  /// Every page that [begin, end) touches.
  void unlock(uintptr_t begin, uintptr_t end);
  size_t bytes() const;

 private:
  std::map<uintptr_t, uintptr_t> ranges_;  // disjoint, begin to end
};

/// Brings pages that the range touches into memory, or says that they need not stay. What the operating
/// system refuses is ignored. Fresh memory that may be written is given pages of its own.
void advise_range(void* address, size_t bytes, Advice advice, bool writable);

/// Of [address, +bytes), what lies in physical memory now.
size_t resident_bytes(const void* address, size_t bytes);

}  // namespace refrain::backend::cpu
