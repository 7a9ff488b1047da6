// Which submissions of a device have failed, and why. Internal to device/.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain {

/// Never forgets that one has failed; why, of the last kMaxMessages. Any thread may call any function.
class Failures {
 public:
  explicit Failures(uint32_t queues) : failed_(queues) {}

  /// False: none has. Costs nothing.
  bool any() const { return any_.load(std::memory_order_acquire); }
  /// False when it is known. Noted in the order of each queue; after std::bad_alloc nothing is.
  bool note(const backend::Point& point, const std::string& message);
  /// Why the submission failed; empty when it has not, as far as is known.
  std::string find(const backend::Point& point) const;

 private:
  static constexpr size_t kMaxMessages = 1024;

  std::atomic<bool> any_{false};
  mutable std::mutex mutex_;
  std::vector<std::vector<std::pair<uint64_t, uint64_t>>> failed_;  // by queue: first and last of each row
  struct Message {
    uint32_t queue = 0;
    uint64_t value = 0;
    std::string text;
  };
  std::deque<Message> messages_;
};

}  // namespace refrain
