// Memory that is to stay in physical memory, as a set that changes with submissions. A matter of speed alone:
// what is not in it works as well.
#pragma once

#include <cstddef>
#include <memory>

#include "refrain/device/device.h"

namespace refrain {

struct ResidencyOptions {
  bool lock = true;  ///< kept in memory as far as the system allows; false: brought in, and no more
};

/// What is added or removed is staged, and applied all at once before the next submission; a removal only
/// once every submission then in flight has completed. Views may overlap: bytes stay as long as one of them is
/// in the set. Sets do not know of each other: what one removes is gone for all. Memory that is released
/// leaves by itself. What has become of it, Device::memory says. Any thread may use it. Dropping it removes
/// what it holds in the same way.
class ResidencySet {
 public:
  explicit ResidencySet(Device device, const ResidencyOptions& options = {});
  ResidencySet(ResidencySet&&) noexcept = default;
  ResidencySet& operator=(ResidencySet&& other) noexcept;
  ~ResidencySet();

  /// Adds the bytes of a view; once more changes nothing. Throws InvalidArgument for another device's.
  void add(const Buffer& buffer);
  void add(const Weight& weight);
  /// Throws InvalidArgument for bytes that were not added as one view.
  void remove(const Buffer& buffer);
  void remove(const Weight& weight);
  bool contains(const Buffer& buffer) const;
  bool contains(const Weight& weight) const;

  size_t size() const;   ///< views in it, staged ones included
  size_t bytes() const;  ///< of these
  /// True when something is staged or a removal waits for submissions.
  bool staged() const;
  /// Applies what is staged without a submission, and the removals whose submissions have completed.
  void flush();

 private:
  class State;

  void change(const std::shared_ptr<const AllocationHandle>& memory, const backend::BufferView& view,
              bool in);
  State& state() const;

  Device device_;
  std::shared_ptr<State> state_;
};

}  // namespace refrain
