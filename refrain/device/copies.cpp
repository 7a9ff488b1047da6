// Copies between the host and memory of a device, wherever it is.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "refrain/device/device_state.h"

namespace refrain {
namespace {

constexpr std::array<std::byte, size_t{64} << 10> kZeros{};

// The bytes of a buffer to be copied. Throws InvalidArgument for what is not this device's.
backend::BufferView checked_view(const DeviceState& state, const char* call, const Buffer& buffer,
                                 size_t bytes) {
  if (!buffer || &buffer.memory()->backend() != state.backend.get())
    throw InvalidArgument(
        fmt::format("[{}] buffer: expected one of this device, got another's or none", call));
  if (bytes != buffer.bytes()) {
    throw InvalidArgument(fmt::format("[{}] '{}': expected {} bytes, got {}", call, buffer.memory()->label(),
                                      buffer.bytes(), bytes));
  }
  return buffer.device_view();
}

}  // namespace

void DeviceState::write(const backend::BufferView& to, std::span<const std::byte> from) {
  guarded([&] { backend->write(to, from); });
  counters.change([&](Counters& c) {
    ++c.writes;
    c.write_bytes += from.size();
  });
}

void DeviceState::read(const backend::BufferView& from, std::span<std::byte> to) {
  guarded([&] { backend->read(from, to); });
  counters.change([&](Counters& c) {
    ++c.reads;
    c.read_bytes += to.size();
  });
}

void DeviceState::clear(const backend::BufferView& view) {
  if (view.allocation->host != nullptr) {
    std::memset(backend::host_bytes(view), 0, view.bytes);
    return;
  }
  for (size_t at = 0; at < view.bytes; at += kZeros.size()) {
    const size_t bytes = std::min(kZeros.size(), view.bytes - at);
    write({view.allocation, view.offset_bytes + at, bytes}, std::span(kZeros).first(bytes));
  }
}

void Device::check_elements(const char* call, const Buffer& buffer, DType dtype) {
  if (!buffer || buffer.dtype() == dtype) return;  // none is refused with the others' buffers
  throw InvalidArgument(fmt::format("[{}] '{}': expected elements of {}, got {}", call,
                                    buffer.memory()->label(), name(buffer.dtype()), name(dtype)));
}

void Device::write(const Buffer& to, std::span<const std::byte> from) {
  DeviceState& state = live();
  const backend::BufferView view = checked_view(state, "write", to, from.size());
  if (to.read_only()) {
    throw InvalidArgument(
        fmt::format("[write] '{}': expected memory to write, got a read-only buffer", to.memory()->label()));
  }
  const size_t begin = view.offset_bytes, end = view.offset_bytes + view.bytes;
  state.submissions.check_host_access("[write]", *to.memory(), begin, end, true);
  state.write(view, from);
  // Later than what has been submitted, which does not touch these bytes any more.
  state.undefined->clear({view.allocation->id, begin, end}, state.submissions.place() + 1);
}

void Device::read(const Buffer& from, std::span<std::byte> to) const {
  DeviceState& state = live();
  const backend::BufferView view = checked_view(state, "read", from, to.size());
  const size_t begin = view.offset_bytes, end = view.offset_bytes + view.bytes;
  state.submissions.check_host_access("[read]", *from.memory(), begin, end, false);
  from.memory()->check_defined("[read]", begin, end);
  state.read(view, to);
}

}  // namespace refrain
