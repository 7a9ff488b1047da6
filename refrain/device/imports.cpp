#include "refrain/device/imports.h"

#include <fmt/format.h>

#include <cstdint>

#include "refrain/core/checked.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

std::string quoted(const std::string& label, uintptr_t begin, size_t bytes) {
  return fmt::format("'{}' [{:#x}, +{})", label, begin, bytes);
}

/// What a part keeps in place of its allocation: the whole, which gives it back.
struct Part final : AllocationHome {
  explicit Part(std::shared_ptr<const AllocationHandle> of) : whole(std::move(of)) {}
  void take_back(const backend::Allocation*) noexcept override {}
  bool owns_bytes() const override { return false; }
  const std::shared_ptr<const AllocationHandle> whole;
};

}  // namespace

ImportedMemory Imports::get(DeviceState& device, std::span<const std::byte> bytes,
                            std::shared_ptr<const void> owner, const std::string& label) {
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
  const std::optional<uintptr_t> end = checked_add(begin, uintptr_t{bytes.size()});
  if (begin == 0 || !end) {
    throw InvalidArgument(fmt::format("[import_memory] memory: expected memory of the host, got {}",
                                      quoted(label, begin, bytes.size())));
  }
  DeviceLink link = device.link();
  link.born = 0;                                  // a kernel may have known the memory of the host before
  std::shared_ptr<const AllocationHandle> known;  // may be the last share: given up after the lock
  std::unique_lock lock(mutex_);
  for (;;) {
    auto found = entries_.lower_bound(*end);
    if (found == entries_.begin()) break;
    --found;
    const uintptr_t first = found->first;
    const size_t size = found->second.bytes;
    if (first + size <= begin) break;
    known = found->second.memory.lock();
    if (known == nullptr) {
      taken_back_.wait(lock);  // its last share has gone on another thread, which is about to take it back
      continue;
    }
    if (begin < first || *end > first + size) {
      throw InvalidArgument(fmt::format(
          "[import_memory] memory: {} overlaps the import {} in part: import all of it once and take views",
          quoted(label, begin, bytes.size()), quoted(known->label(), first, size)));
    }
    if (owner == nullptr) return {known, begin - first};
    // A handle of its own, so that recordings and submissions that use both keep both owners.
    return {std::make_shared<const AllocationHandle>(backend_, &known->allocation(), std::move(owner),
                                                     std::make_shared<Part>(known), link, label),
            begin - first};
  }
  const size_t alignment = backend_->info.buffer_alignment_bytes;
  if (begin % alignment != 0) {
    throw InvalidArgument(
        fmt::format("[import_memory] memory: expected an address aligned to {} bytes, got {}", alignment,
                    quoted(label, begin, bytes.size())));
  }
  // With the mutex held: of two threads with the same bytes one imports them, the other gets a view.
  Entry& entry = entries_[begin];
  const backend::Allocation* allocation = nullptr;
  try {
    // Whether the device may write there is the business of the views.
    allocation = device.guarded([&] {
      return backend_->allocate({.bytes = bytes.size(),
                                 .label = label,
                                 .kind = MemoryKind::import_host,
                                 .host = const_cast<std::byte*>(bytes.data())});
    });
    known = std::make_shared<const AllocationHandle>(backend_, allocation, std::move(owner),
                                                     shared_from_this(), link, label);
  } catch (...) {
    if (allocation != nullptr) backend_->release(allocation);
    entries_.erase(begin);
    throw;
  }
  entry = {bytes.size(), known};
  lock.unlock();
  device.counters.change([](Counters& counters) { ++counters.allocations; });
  return {std::move(known), 0};
}

void Imports::take_back(const backend::Allocation* allocation) noexcept {
  const std::lock_guard lock(mutex_);
  entries_.erase(reinterpret_cast<uintptr_t>(allocation->host));
  // With the mutex held: whoever imports these bytes next finds them free at the backend too.
  backend_->release(allocation);
  taken_back_.notify_all();
}

}  // namespace refrain
