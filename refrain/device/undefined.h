// Which bytes of a device's memory are undefined, since a submission that would have written them has failed.
// Internal to device/; shared with the memory, which outlives the device.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "refrain/graph/summary.h"

namespace refrain {

/// Submissions have a place in one order of the device; what a later one writes whole, an earlier one that
/// failed does not undo, whichever is heard of first. Any thread may call any function.
class Undefined {
 public:
  using Range = graph::AccessSummary::Entry;
  using Failure = std::shared_ptr<const std::string>;

  /// False: no byte is. Costs nothing.
  bool any() const { return any_.load(std::memory_order_acquire); }
  /// Submission `place` would have written `range`. After std::bad_alloc, to be called again.
  void add(const Range& range, uint64_t place, const Failure& failure);
  /// Submission `place` has written `range` whole. After std::bad_alloc, to be called again.
  void clear(const Range& range, uint64_t place);
  /// What the allocation held is gone.
  void forget(uint64_t allocation) noexcept;
  struct First {
    Failure failure;  ///< null: none
    uint64_t place = UINT64_MAX;
  };
  /// The first failure before `place` for which a byte of `range` is undefined.
  First find(const Range& range, uint64_t place = UINT64_MAX) const noexcept;
  /// There is no memory to say which bytes are: all of them.
  void give_up() noexcept;

 private:
  using Key = std::pair<uint64_t, size_t>;  // allocation, begin
  struct Mark {
    size_t end = 0;
    uint64_t first = 0, last = 0;  // of the submissions that failed
    Failure failure;               // of the first
  };
  using Marks = std::map<Key, Mark>;  // disjoint

  void cut(uint64_t allocation, size_t at);

  std::atomic<bool> any_{false};
  mutable std::mutex mutex_;
  Marks marks_;
  bool all_ = false;
  const Failure unsaid_ = std::make_shared<const std::string>(
      "a submission failed, and there was no memory to say which bytes that left undefined");
};

}  // namespace refrain
