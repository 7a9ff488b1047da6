// How mlx-native and ggml order commands, for comparison with graph::order_by_levels.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "refrain/graph/reorder.h"

namespace refrain::bench {

inline constexpr size_t kLookahead =
    64;  // positions from the command that begins the next section, itself included

/// Ranges of several commands, to test one more against. Those of a memory are one list, or share it with a few.
class Touched {
 public:
  Touched() { clear(); }
  bool conflicts(std::span<const graph::RangeAccess> ranges) const {
    return std::ranges::any_of(ranges, [&](const graph::RangeAccess& a) {
      return any(a.memory, [&](const graph::RangeAccess& b) {
        return backend::conflict(a.effect, b.effect) && std::max(a.begin, b.begin) < std::min(a.end, b.end);
      });
    });
  }
  void add(std::span<const graph::RangeAccess> ranges) {
    for (const graph::RangeAccess& range : ranges) {
      // Weights, caches and live counts are bound in the same way again and again.
      const bool known = any(range.memory, [&](const graph::RangeAccess& other) {
        return other.begin == range.begin && other.end == range.end && other.effect == range.effect;
      });
      if (known) continue;
      uint32_t& first = first_[range.memory % first_.size()];
      ranges_.push_back({range, first});
      first = static_cast<uint32_t>(ranges_.size()) - 1;
    }
  }
  void clear() {
    ranges_.clear();
    first_.fill(backend::kNone);
  }

 private:
  struct Node {
    graph::RangeAccess range;
    uint32_t next = backend::kNone;
  };

  template <class Is>
  bool any(uint64_t memory, Is is) const {
    for (uint32_t i = first_[memory % first_.size()]; i != backend::kNone; i = ranges_[i].next) {
      if (ranges_[i].range.memory == memory && is(ranges_[i].range)) return true;
    }
    return false;
  }

  std::vector<Node> ranges_;
  std::array<uint32_t, 256> first_;  // by memory, the last added
};

/// Greedy look-ahead, as mlx-native and ggml do it. Commands are taken in recorded order
/// into a section. When the next one, at i, conflicts with the section, the commands at i + 1 to i + 63 are
/// examined (64 positions with i itself; those already taken are passed over): one that conflicts neither
/// with the section nor with the ones passed by is taken into it, any other is passed by. Then a new section
/// begins with command i. Unlike there, a fence ends the section and the look-ahead, so that nothing crosses
/// it. O(n * 64 * ranges * different ranges of one memory in a section).
inline graph::Reordering order_by_lookahead(const graph::AccessList& accesses) {
  const size_t count = accesses.commands.size();
  std::vector<uint32_t> result;
  result.reserve(count);
  std::vector<bool> taken(count);
  Touched section, passed;
  for (size_t i = 0; i < count; ++i) {
    if (taken[i]) continue;
    if (accesses.commands[i].fence) {
      section.clear();
    } else if (section.conflicts(accesses.ranges_of(i))) {
      passed.clear();
      passed.add(accesses.ranges_of(i));
      const size_t end = std::min(i + kLookahead, count);
      for (size_t next = i + 1; next < end && !accesses.commands[next].fence; ++next) {
        if (taken[next]) continue;
        const std::span<const graph::RangeAccess> ranges = accesses.ranges_of(next);
        if (section.conflicts(ranges) || passed.conflicts(ranges)) {
          passed.add(ranges);
          continue;
        }
        section.add(ranges);
        result.push_back(static_cast<uint32_t>(next));
        taken[next] = true;
      }
      section.clear();
    }
    section.add(accesses.ranges_of(i));
    result.push_back(static_cast<uint32_t>(i));
  }
  return graph::reordered(std::move(result), accesses, graph::derive_order(accesses));
}

}  // namespace refrain::bench
