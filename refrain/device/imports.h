// The host's memory that one device uses in place; a byte belongs to one allocation. Internal to device/.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "refrain/device/buffer.h"

namespace refrain {

/// Part of an allocation.
struct ImportedMemory {
  std::shared_ptr<const AllocationHandle> memory;
  size_t offset_bytes = 0;
};

/// Keeps the backend, not the device: imports may outlive it.
class Imports final : public AllocationHome, public std::enable_shared_from_this<Imports> {
 public:
  explicit Imports(std::shared_ptr<backend::Backend> backend) : backend_(std::move(backend)) {}

  /// `bytes` as an allocation of `device`, or as a part of one that lives; `owner` is held by the result.
  /// Throws as Device::import_memory.
  ImportedMemory get(DeviceState& device, std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                     const std::string& label);
  void take_back(const backend::Allocation* allocation) noexcept override;

 private:
  struct Entry {
    size_t bytes = 0;
    std::weak_ptr<const AllocationHandle> memory;
  };

  const std::shared_ptr<backend::Backend> backend_;
  std::mutex mutex_;
  std::condition_variable taken_back_;
  std::map<uintptr_t, Entry> entries_;  // by address, disjoint
};

}  // namespace refrain
