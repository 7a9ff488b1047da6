#include "refrain/device/buffer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

/// Bytes of a tensor. Throws InvalidArgument for DType::activation and for sizes that overflow.
size_t tensor_bytes(DType dtype, const Shape& shape) {
  if (size_bytes(dtype) == 0)
    throw InvalidArgument(fmt::format("[buffer] dtype: {} has no size", name(dtype)));
  const std::optional<size_t> bytes = checked_mul(static_cast<size_t>(shape.elements()), size_bytes(dtype));
  if (!bytes) throw InvalidArgument(fmt::format("[buffer] shape: {} is too large", to_string(shape)));
  return *bytes;
}

}  // namespace

AllocationHandle::~AllocationHandle() {
  if (home_ == nullptr || home_->owns_bytes()) link_.undefined->forget(allocation_->id);
  if (home_ != nullptr) {
    home_->take_back(allocation_);
  } else {
    backend_->release(allocation_);
  }
}

void AllocationHandle::check_defined(const char* call, size_t begin, size_t end) const {
  const Undefined::First first = link_.undefined->find({allocation_->id, begin, end});
  if (first.failure == nullptr) return;
  throw DeviceError(fmt::format("{} '{}' is undefined: {}", call, label_, *first.failure));
}

Buffer::Buffer(std::shared_ptr<const AllocationHandle> memory, size_t offset_bytes, DType dtype, Shape shape)
    : memory_(std::move(memory)),
      offset_bytes_(offset_bytes),
      bytes_(tensor_bytes(dtype, shape)),
      dtype_(dtype),
      shape_(shape) {
  if (!memory_) throw InvalidArgument("[buffer] memory: expected an allocation, got none");
  const std::optional<size_t> end = checked_add(offset_bytes_, bytes_);
  if (!end || *end > memory_->allocation().bytes) {
    throw InvalidArgument(fmt::format("[buffer] view: bytes [{}, {} + {}) exceed the allocation of {}",
                                      offset_bytes_, offset_bytes_, bytes_, memory_->allocation().bytes));
  }
  if (offset_bytes_ % size_bytes(dtype) != 0) {
    throw InvalidArgument(fmt::format("[buffer] view: offset {} is not a multiple of the {} bytes of {}",
                                      offset_bytes_, size_bytes(dtype), name(dtype)));
  }
}

Buffer Buffer::slice(int64_t first, int64_t count) const {
  if (!memory_ || shape_.rank() == 0)
    throw InvalidArgument("[buffer] slice: expected a buffer with a dimension");
  if (first < 0 || count < 0 || first > shape_[0] || count > shape_[0] - first) {
    throw InvalidArgument(fmt::format("[buffer] slice: expected rows within [0, {}), got [{}, {} + {})",
                                      shape_[0], first, first, count));
  }
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::ranges::copy(shape_.dims(), dims.begin());
  const size_t row_bytes = shape_[0] == 0 ? 0 : bytes_ / static_cast<size_t>(shape_[0]);
  dims[0] = count;
  Buffer result(memory_, offset_bytes_ + static_cast<size_t>(first) * row_bytes, dtype_,
                Shape(std::span(dims.data(), shape_.rank())));
  result.read_only_ = read_only_;
  return result;
}

Buffer Buffer::view(DType dtype, Shape shape, size_t offset_bytes) const {
  if (!memory_) throw InvalidArgument("[buffer] view: expected a buffer, got none");
  const size_t bytes = tensor_bytes(dtype, shape);
  if (offset_bytes > bytes_ || bytes > bytes_ - offset_bytes) {
    throw InvalidArgument(fmt::format("[buffer] view: bytes [{}, {} + {}) exceed the view of {}",
                                      offset_bytes, offset_bytes, bytes, bytes_));
  }
  Buffer result(memory_, offset_bytes_ + offset_bytes, dtype, shape);
  result.read_only_ = read_only_;
  return result;
}

Buffer Buffer::with_live_rows(const Buffer& count) const {
  if (!memory_ || shape_.rank() == 0)
    throw InvalidArgument("[buffer] with_live_rows: expected a buffer with rows");
  if (!count || count.dtype() != DType::u32 || count.shape().elements() != 1) {
    throw InvalidArgument("[buffer] with_live_rows: expected a u32 buffer of one element");
  }
  if (&count.memory_->backend() != &memory_->backend()) {
    throw InvalidArgument(
        "[buffer] with_live_rows: expected a count on this buffer's device, got another device's");
  }
  Buffer result = *this;
  result.live_ = count.device_view();
  result.live_memory_ = count.memory_;
  return result;
}

backend::BufferView Buffer::device_view() const {
  if (!memory_) throw InvalidArgument("[buffer] device_view: expected a buffer, got none");
  return {&memory_->allocation(), offset_bytes_, bytes_};
}

std::span<std::byte> Buffer::host_span() const {
  check_host_access(dtype_, true);
  return {host_bytes(), bytes_};
}

void Buffer::check_host_access(DType dtype, bool write) const {
  if (!memory_) throw InvalidArgument("[buffer] span: expected a buffer, got none");
  if (dtype != dtype_) {
    throw InvalidArgument(fmt::format("[buffer] span: expected {}, got {}", name(dtype_), name(dtype)));
  }
  if (memory_->allocation().host == nullptr) {
    throw InvalidArgument(fmt::format(
        "[buffer] span: '{}' is memory of device {} that the host cannot reach in place: expected "
        "Device::write and Device::read, or a buffer of MemoryKind::host",
        memory_->label(), memory_->backend().info.backend));
  }
  if (write && read_only_) {
    throw InvalidArgument(
        fmt::format("[buffer] span: expected a span of const, since '{}' is read-only", memory_->label()));
  }
  // A device that is gone has nothing in flight.
  if (const auto device = memory_->device().lock())
    device->submissions.check_host_access("[buffer] span:", *memory_, offset_bytes_, offset_bytes_ + bytes_,
                                          write);
  memory_->check_defined("[buffer] span:", offset_bytes_, offset_bytes_ + bytes_);
}

std::byte* Buffer::host_bytes() const {
  return static_cast<std::byte*>(memory_->allocation().host) + offset_bytes_;
}

}  // namespace refrain
