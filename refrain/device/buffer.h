// Memory of a device as typed views. A Buffer is a view; it owns a share of the allocation behind it.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "refrain/backend/backend.h"
#include "refrain/core/dtype.h"
#include "refrain/core/shape.h"

namespace refrain {

using backend::MemoryKind;

struct DeviceState;

/// Takes an allocation back in place of its backend, to give it out again.
class AllocationHome {
 public:
  virtual ~AllocationHome() = default;
  /// False for a handle of memory that others have as well: its end says nothing of what the bytes hold.
  virtual bool owns_bytes() const { return true; }
  virtual void take_back(const backend::Allocation* allocation) noexcept = 0;
};

class Undefined;

/// What memory knows of the device that it was made on.
struct DeviceLink {
  std::weak_ptr<DeviceState> device;     ///< knows what is in flight
  std::shared_ptr<Undefined> undefined;  ///< the bytes that failures have left so
  uint64_t born = 0;                     ///< submissions made before; they cannot know this memory
};

/// An allocation and its backend, shared by all views and by the submissions that use it; released when the
/// last share goes, and in no other way.
class AllocationHandle {
 public:
  /// `keep_alive` is held until after the release: the owner of imported memory, say. `label` names the memory
  /// in errors.
  AllocationHandle(std::shared_ptr<backend::Backend> backend, const backend::Allocation* allocation,
                   std::shared_ptr<const void> keep_alive, std::shared_ptr<AllocationHome> home,
                   DeviceLink link, std::string label)
      : keep_alive_(std::move(keep_alive)),
        backend_(std::move(backend)),
        home_(std::move(home)),
        link_(std::move(link)),
        label_(std::move(label)),
        allocation_(allocation) {}
  ~AllocationHandle();
  AllocationHandle(const AllocationHandle&) = delete;
  AllocationHandle& operator=(const AllocationHandle&) = delete;

  const backend::Allocation& allocation() const { return *allocation_; }
  const backend::Backend& backend() const { return *backend_; }
  const std::weak_ptr<DeviceState>& device() const { return link_.device; }
  const std::string& label() const { return label_; }
  uint64_t born() const { return link_.born; }
  /// Throws DeviceError, beginning with `call`, with the first failure that left bytes of [begin, end) undefined.
  void check_defined(const char* call, size_t begin, size_t end) const;

 private:
  std::shared_ptr<const void> keep_alive_;
  std::shared_ptr<backend::Backend> backend_;
  std::shared_ptr<AllocationHome> home_;
  DeviceLink link_;
  std::string label_;
  const backend::Allocation* allocation_;
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
  /// True for a view of memory that was imported to be read: nothing writes it through this view.
  bool read_only() const { return read_only_; }

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

  /// The elements, in place, for the host: `const T` to read, T to write as well. For memory that the host
  /// reaches: of kind host, imported from it, or of a device whose info says host_memory. Device::write and read
  /// serve all memory. Allocates nothing. Throws InvalidArgument when T is not the dtype's type, the host cannot
  /// reach the memory, this is read-only and T is not const, or a submission in flight writes these bytes (for
  /// T: or reads them): wait for it, or call Device::synchronize. Throws DeviceError when a failure has left some
  /// of them undefined (see Device): write them whole. Not seen: a later submission while the span is in use, or
  /// what has been recorded but not submitted.
  template <class T>
  std::span<T> span() const {
    check_host_access(DTypeOf<std::remove_const_t<T>>::value, !std::is_const_v<T>);
    return {reinterpret_cast<T*>(host_bytes()), bytes_ / sizeof(T)};
  }
  /// The bytes of this view, in place, to read and write. As span().
  std::span<std::byte> host_span() const;

  /// Throws InvalidArgument for a Buffer() without memory.
  backend::BufferView device_view() const;
  /// The live count; no allocation when every row is live.
  backend::BufferView live_rows() const { return live_; }
  const std::shared_ptr<const AllocationHandle>& memory() const { return memory_; }

 private:
  void check_host_access(DType dtype, bool write) const;
  std::byte* host_bytes() const;

  std::shared_ptr<const AllocationHandle> memory_;
  size_t offset_bytes_ = 0;
  size_t bytes_ = 0;
  DType dtype_ = DType::f32;
  Shape shape_;
  bool read_only_ = false;
  backend::BufferView live_;
  std::shared_ptr<const AllocationHandle> live_memory_;

  friend class CommandEncoder;
  friend class Device;
};

}  // namespace refrain
