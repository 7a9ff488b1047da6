// When a wait ends.
#pragma once

#include <algorithm>
#include <chrono>

namespace refrain {

/// The time `timeout` from now: now for one below 0, in a year for a longer one, so that no clock overflows.
inline std::chrono::steady_clock::time_point deadline_after(std::chrono::nanoseconds timeout) {
  return std::chrono::steady_clock::now() +
         std::clamp(timeout, std::chrono::nanoseconds(0),
                    std::chrono::nanoseconds(std::chrono::hours(24 * 365)));
}

}  // namespace refrain
