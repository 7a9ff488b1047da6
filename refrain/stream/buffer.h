// Memory of a device as typed views. A Buffer is a view; it owns a share of the allocation behind it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "refrain/core/dtype.h"
#include "refrain/core/shape.h"
#include "refrain/device/device.h"

namespace refrain {

/// Takes an allocation back in place of its backend, to give it out again.
class AllocationHome {
 public:
  virtual ~AllocationHome() = default;
  virtual void take_back(const device::Allocation* allocation) noexcept = 0;
};

/// An allocation and its backend, shared by all views and by the submissions that use it; released when the
/// last share goes, and in no other way.
class AllocationHandle {
 public:
  /// `keep_alive` is held until after the release: the owner of imported memory, say.
  AllocationHandle(std::shared_ptr<device::Backend> backend, const device::Allocation* allocation,
                   std::shared_ptr<const void> keep_alive, std::shared_ptr<AllocationHome> home = nullptr)
      : keep_alive_(std::move(keep_alive)),
        backend_(std::move(backend)),
        home_(std::move(home)),
        allocation_(allocation) {}
  ~AllocationHandle() {
    if (home_ != nullptr) {
      home_->take_back(allocation_);
    } else {
      backend_->release(allocation_);
    }
  }
  AllocationHandle(const AllocationHandle&) = delete;
  AllocationHandle& operator=(const AllocationHandle&) = delete;

  const device::Allocation& allocation() const { return *allocation_; }
  const device::Backend& backend() const { return *backend_; }

 private:
  std::shared_ptr<const void> keep_alive_;
  std::shared_ptr<device::Backend> backend_;
  std::shared_ptr<AllocationHome> home_;
  const device::Allocation* allocation_;
};

/// A typed, contiguous, row-major view of device memory. Copies are views of the same bytes.
class Buffer {
 public:
  Buffer() = default;  ///< no memory; may not be bound
  Buffer(std::shared_ptr<const AllocationHandle> memory, size_t offset_bytes, DType dtype, Shape shape);

  explicit operator bool() const { return memory_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  size_t bytes() const { return bytes_; }
  size_t offset_bytes() const { return offset_bytes_; }

  /// Rows [first, first + count) along the first dimension, without the live count. Throws InvalidArgument
  /// when out of range.
  Buffer slice(int64_t first, int64_t count) const;
  /// The bytes from `offset_bytes` on (relative to this view) with another dtype and shape, without the live
  /// count. Throws InvalidArgument when they do not fit into this view or are misaligned for `dtype`.
  Buffer view(DType dtype, Shape shape, size_t offset_bytes = 0) const;
  /// The same view whose first dimension counts rows of which only `count` (u32, one element) are live: read
  /// by the device when a command begins. Commands on it neither read nor write rows past the count. Throws
  /// InvalidArgument when this has no rows or `count` is not one u32 of the same device.
  Buffer with_live_rows(const Buffer& count) const;

  /// The elements, in place, for the host. The caller has waited for the submissions that write them.
  /// Throws InvalidArgument when T is not the dtype's type or the device's memory is not the host's.
  template <class T>
  std::span<T> span() const {
    check_host_access(DTypeOf<T>::value);
    return {reinterpret_cast<T*>(host_bytes()), bytes_ / sizeof(T)};
  }
  /// The bytes of this view, in place. As span().
  std::span<std::byte> host_span() const;

  /// Throws InvalidArgument for a Buffer() without memory.
  device::BufferView device_view() const;
  /// The live count; no allocation when every row is live.
  device::BufferView live_rows() const { return live_; }
  const std::shared_ptr<const AllocationHandle>& memory() const { return memory_; }

 private:
  void check_host_access(DType dtype) const;
  std::byte* host_bytes() const;

  std::shared_ptr<const AllocationHandle> memory_;
  size_t offset_bytes_ = 0;
  size_t bytes_ = 0;
  DType dtype_ = DType::f32;
  Shape shape_;
  device::BufferView live_;
  std::shared_ptr<const AllocationHandle> live_memory_;

  friend class CommandEncoder;
};

}  // namespace refrain
