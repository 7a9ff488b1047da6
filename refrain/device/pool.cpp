#include "refrain/device/pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "refrain/core/checked.h"
#include "refrain/core/deadline.h"
#include "refrain/device/device_state.h"

namespace refrain {

// Keeps the backend, not the device: what comes back when the device is gone is released.
struct BufferPool::State final : AllocationHome {
  using Free = std::multimap<size_t, const backend::Allocation*>;  // by bytes

  State(std::shared_ptr<backend::Backend> device_backend, const PoolOptions& pool_options)
      : backend(std::move(device_backend)), options(pool_options) {}

  ~State() override {
    for (const auto& [bytes, allocation] : free) backend->release(allocation);
  }

  void take_back(const backend::Allocation* allocation) noexcept override {
    {
      const std::lock_guard lock(mutex);
      out_bytes -= allocation->bytes;
      if (allocation->bytes <= options.keep_bytes && free_bytes <= options.keep_bytes - allocation->bytes) {
        try {
          free.emplace(allocation->bytes, allocation);
          free_bytes += allocation->bytes;
          return;
        } catch (const std::bad_alloc&) {
          // Then it is released.
        }
      }
    }
    backend->release(allocation);
  }

  /// Free memory for `bytes`; null when none fits well. With the mutex held.
  const backend::Allocation* take(size_t bytes) {
    const auto found = free.lower_bound(bytes);
    if (found == free.end() || found->first - bytes > bytes) return nullptr;
    const backend::Allocation* allocation = found->second;
    free.erase(found);
    free_bytes -= allocation->bytes;
    out_bytes += allocation->bytes;
    return allocation;
  }

  /// Takes out free memory, to be released, until at most `keep_bytes` are left. With the mutex held.
  Free excess(size_t keep_bytes) {
    Free taken;
    while (free_bytes > keep_bytes) {
      auto node = free.extract(std::prev(free.end()));
      free_bytes -= node.key();
      taken.insert(std::move(node));
    }
    return taken;
  }

  void release(const Free& taken) {
    for (const auto& [bytes, allocation] : taken) backend->release(allocation);
  }

  /// True when there was something to release.
  bool trim(size_t keep_bytes) {
    Free taken;
    {
      const std::lock_guard lock(mutex);
      taken = excess(keep_bytes);
    }
    release(taken);
    return !taken.empty();
  }

  const std::shared_ptr<backend::Backend> backend;
  const PoolOptions options;
  std::mutex mutex;
  Free free;
  size_t free_bytes = 0;
  size_t out_bytes = 0;
  uint64_t fresh = 0;
  uint64_t reused = 0;
};

BufferPool::BufferPool(Device device, const PoolOptions& options) : device_(std::move(device)) {
  state_ = std::make_shared<State>(device_.live().backend, options);
}

Buffer BufferPool::buffer(DType dtype, const Shape& shape, std::string_view label) {
  DeviceState& device = device_.live();
  const int64_t elements = shape.elements();
  if (elements == 0 || size_bytes(dtype) == 0) {
    throw InvalidArgument(fmt::format("[pool] {}: expected elements of a known size, got {} {}", label,
                                      name(dtype), to_string(shape)));
  }
  const std::optional<size_t> bytes = checked_mul(static_cast<size_t>(elements), size_bytes(dtype));
  if (!bytes) throw InvalidArgument(fmt::format("[pool] {}: {} is too large", label, to_string(shape)));

  const auto deadline = deadline_after(state_->options.patience);
  const size_t limit = state_->options.limit_bytes;
  const backend::Allocation* allocation = nullptr;
  bool used_before = true;
  while (allocation == nullptr) {
    device.submissions.reap();
    bool full = false;
    State::Free excess;
    {
      const std::lock_guard lock(state_->mutex);
      allocation = state_->take(*bytes);
      if (allocation != nullptr) {
        ++state_->reused;
        break;
      }
      const size_t taken = state_->out_bytes;
      full = limit != 0 && (*bytes > limit || taken > limit - *bytes);
      if (!full) {
        // Before it is allocated, so that no other thread counts on it.
        state_->out_bytes += *bytes;
        if (limit != 0) excess = state_->excess(limit - state_->out_bytes);
      }
    }
    if (full) {
      if (*bytes > limit || std::chrono::steady_clock::now() >= deadline) {
        throw DeviceError(fmt::format("[pool] {}: {} bytes wanted, {} of at most {} in use", label, *bytes,
                                      usage().out_bytes, limit));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      continue;
    }
    state_->release(excess);
    const auto allocate = [&] {
      return device.guarded([&] { return device.backend->allocate({*bytes, std::string(label)}); });
    };
    try {
      try {
        allocation = allocate();
      } catch (const DeviceLost&) {
        throw;
      } catch (const DeviceError&) {
        if (!state_->trim(0)) throw;
        allocation = allocate();
      }
    } catch (...) {
      const std::lock_guard lock(state_->mutex);
      state_->out_bytes -= *bytes;
      throw;
    }
    used_before = false;
    {
      const std::lock_guard lock(state_->mutex);
      ++state_->fresh;
    }
    device.counters.change([](Counters& counters) { ++counters.allocations; });
  }

  std::shared_ptr<const AllocationHandle> handle;
  try {
    handle = std::make_shared<const AllocationHandle>(device.backend, allocation, nullptr, state_,
                                                      device.link(), std::string(label));
  } catch (...) {
    state_->take_back(allocation);
    throw;
  }
  if (used_before && state_->options.init == PoolInit::zero) device.clear({allocation, 0, *bytes});
  return Buffer(std::move(handle), 0, dtype, shape);
}

void BufferPool::trim(size_t keep_bytes) {
  device_.checked().submissions.reap();
  state_->trim(keep_bytes);
}

PoolUsage BufferPool::usage() {
  device_.checked().submissions.reap();
  const std::lock_guard lock(state_->mutex);
  return {state_->out_bytes, state_->free_bytes, state_->fresh, state_->reused};
}

}  // namespace refrain
