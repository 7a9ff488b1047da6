// Small allocations come from the C library, large ones are mapped so that they lie on 2 MB pages.
#include "refrain/backend/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "refrain/backend/cpu/machine.h"
#include "refrain/backend/cpu/residency.h"
#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::backend::cpu {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Fresh, zeroed pages that begin on a huge page; null when refused.
void* map_huge(size_t bytes) {
  const size_t span_bytes = bytes + kHugePageBytes;
  void* mapping = mmap(nullptr, span_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(mapping);
  const uintptr_t aligned = align_up(begin, kHugePageBytes);
  if (aligned > begin) munmap(mapping, aligned - begin);
  const size_t tail_bytes = begin + span_bytes - (aligned + bytes);
  if (tail_bytes > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail_bytes);
  auto* address = reinterpret_cast<void*>(aligned);
#if defined(MADV_HUGEPAGE)
  madvise(address, bytes, MADV_HUGEPAGE);  // a wish: where it is refused, small pages serve
#endif
  return address;
}

}  // namespace

struct Memory::Block : Allocation {
  size_t owned_bytes = 0;  // 0: imported
  bool mapped = false;
  LockedPages locked;

  ~Block() {
    // Imported memory stays, and so do pages of the C library.
    const auto begin = reinterpret_cast<uintptr_t>(host);
    if (locked.bytes() != 0) locked.unlock(begin, begin + bytes);
    if (owned_bytes == 0) return;
    if (mapped) {
      munmap(host, owned_bytes);
    } else {
      std::free(host);
    }
  }
};

Memory::Memory(const std::string& system_root, size_t limit_bytes)
    : budget_bytes_(limit_bytes != 0 ? limit_bytes : available_bytes(system_root)) {}

Memory::~Memory() = default;

const Allocation* Memory::allocate(const BufferSpec& spec) {
  auto block = std::make_unique<Block>();
  block->bytes = spec.bytes;
  // A device address is one of the host here.
  if (spec.kind == MemoryKind::import_host) block->host = spec.host;
  if (spec.kind == MemoryKind::import_device) block->host = reinterpret_cast<void*>(spec.device_address);
  const std::lock_guard lock(mutex_);
  if (!is_import(spec.kind)) {
    const bool large = spec.bytes >= kHugePageBytes;
    // The operating system promises more than it has; a request that cannot be filled is refused here
    // instead.
    const size_t left_bytes = budget_bytes_ - std::min(budget_bytes_, used_bytes_);
    if (spec.bytes <= std::min(left_bytes, SIZE_MAX / 2)) {
      block->mapped = large;
      block->owned_bytes =
          align_up(spec.bytes, large ? static_cast<size_t>(sysconf(_SC_PAGESIZE)) : kAlignmentBytes);
      block->host =
          large ? map_huge(block->owned_bytes) : std::aligned_alloc(kAlignmentBytes, block->owned_bytes);
    }
    if (block->host == nullptr) {
      block->owned_bytes = 0;
      throw DeviceError("cpu: out of memory: " + std::to_string(spec.bytes) + " bytes wanted for '" +
                        spec.label + "', " + std::to_string(used_bytes_) + " bytes in use of " +
                        std::to_string(budget_bytes_));
    }
    if (!large) std::memset(block->host, 0, block->owned_bytes);
  }
  block->id = ++last_id_;
  block->device_address = reinterpret_cast<uintptr_t>(block->host);
  const Allocation* result = block.get();
  const size_t owned_bytes = block->owned_bytes;
  blocks_.emplace(result, std::move(block));
  used_bytes_ += owned_bytes;
  return result;
}

void Memory::release(const Allocation* allocation) noexcept {
  std::unique_ptr<Block> block;  // declared first: unmapped after the lock is left
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(allocation);
  if (found == blocks_.end()) return;
  used_bytes_ -= found->second->owned_bytes;
  block = std::move(found->second);
  blocks_.erase(found);
}

void Memory::advise(const BufferView& view, Advice advice) {
  auto* address = static_cast<std::byte*>(view.allocation->host) + view.offset_bytes;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  bool owned = false;
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(view.allocation);
    if (found == blocks_.end()) return;
    Block& block = *found->second;
    owned = block.owned_bytes != 0;
    if (advice == Advice::evictable) block.locked.unlock(begin, begin + view.bytes);
  }
  // Without the mutex, as a file may be read here; what is locked after it is in memory already. Imported
  // memory may be read only.
  advise_range(address, view.bytes, advice, owned);
  if (advice != Advice::resident) return;
  const std::lock_guard lock(mutex_);
  blocks_.at(view.allocation)->locked.lock(begin, begin + view.bytes);
}

MemoryUsage Memory::usage() const {
  const std::lock_guard lock(mutex_);
  MemoryUsage usage{used_bytes_, budget_bytes_};
  for (const auto& [allocation, block] : blocks_) {
    usage.resident_bytes += resident_bytes(allocation->host, std::max(block->owned_bytes, allocation->bytes));
    usage.locked_bytes += block->locked.bytes();
  }
  return usage;
}

}  // namespace refrain::backend::cpu
