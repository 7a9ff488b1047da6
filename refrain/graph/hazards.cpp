#include "refrain/graph/hazards.h"

#include <algorithm>
#include <unordered_map>

namespace refrain::graph {
namespace {

using device::kNone;

/// The history of one memory as disjoint, sorted segments: who wrote each last, and who has read it since.
class MemoryHistory {
 public:
  void access(const RangeAccess& range, uint32_t command, std::vector<uint32_t>& deps) {
    if (range.begin >= range.end) return;
    const size_t first = split(range.begin);
    const size_t last = split(range.end);
    cover(first, last, range);
    const auto begin = std::ranges::lower_bound(segments_, range.begin, {}, &Segment::begin);
    const auto end = std::ranges::lower_bound(segments_, range.end, {}, &Segment::begin);
    for (auto it = begin; it != end; ++it) {
      if (it->writer != kNone && it->writer != command) deps.push_back(it->writer);
      if (range.write) {
        for (const uint32_t reader : it->readers) {
          if (reader != command) deps.push_back(reader);
        }
      } else if (it->readers.empty() || it->readers.back() != command) {
        it->readers.push_back(command);
      }
    }
    if (range.write) {
      // One writer for the whole range from here on: its pieces become one segment again.
      *begin = {range.begin, range.end, command, {}};
      segments_.erase(begin + 1, end);
    }
  }

 private:
  struct Segment {
    size_t begin = 0;
    size_t end = 0;
    uint32_t writer = kNone;
    std::vector<uint32_t> readers;
  };

  /// Makes `at` a boundary if a segment spans it. Returns the index of the first segment that begins at or
  /// after it.
  size_t split(size_t at) {
    auto it = std::ranges::upper_bound(segments_, at, {}, &Segment::begin);
    if (it != segments_.begin()) {
      auto before = std::prev(it);
      if (before->begin == at) return static_cast<size_t>(before - segments_.begin());
      if (before->end > at) {
        Segment upper = *before;
        upper.begin = at;
        before->end = at;
        it = segments_.insert(it, std::move(upper));
      }
    }
    return static_cast<size_t>(it - segments_.begin());
  }

  /// Adds empty segments where [range.begin, range.end) has none. Segments [first, last) lie inside it.
  void cover(size_t first, size_t last, const RangeAccess& range) {
    size_t at = range.begin;
    for (size_t i = first; i < last; ++i) {
      if (segments_[i].begin > at) {
        segments_.insert(segments_.begin() + static_cast<ptrdiff_t>(i), {at, segments_[i].begin, kNone, {}});
        ++i;
        ++last;
      }
      at = segments_[i].end;
    }
    if (at < range.end) {
      segments_.insert(segments_.begin() + static_cast<ptrdiff_t>(last), {at, range.end, kNone, {}});
    }
  }

  std::vector<Segment> segments_;
};

}  // namespace

Order derive_order(const AccessList& accesses) {
  const size_t count = accesses.commands.size();
  Order order;
  order.deps_of.reserve(count);
  order.levels.reserve(count);
  order.before = Reachability(count);

  std::unordered_map<uint64_t, MemoryHistory> memories;
  std::vector<uint32_t> candidates;
  uint32_t fence = kNone;
  for (uint32_t i = 0; i < count; ++i) {
    const AccessList::Entry& entry = accesses.commands[i];
    candidates.clear();
    if (entry.fence) {
      for (uint32_t j = fence == kNone ? 0 : fence; j < i; ++j) candidates.push_back(j);
    } else {
      for (uint32_t r = 0; r < entry.ranges.count; ++r) {
        const RangeAccess& range = accesses.ranges[entry.ranges.first + r];
        memories[range.memory].access(range, i, candidates);
      }
      std::ranges::sort(candidates);
      candidates.erase(std::ranges::unique(candidates).begin(), candidates.end());
      order.conflicts += candidates.size();
      if (fence != kNone) {
        candidates.insert(std::ranges::lower_bound(candidates, fence), fence);
        candidates.erase(std::ranges::unique(candidates).begin(), candidates.end());
      }
    }

    // Latest first: an edge is redundant exactly when a later kept one already reaches its target.
    const uint32_t first = static_cast<uint32_t>(order.deps.size());
    uint32_t level = 0;
    for (size_t c = candidates.size(); c-- > 0;) {
      const uint32_t dep = candidates[c];
      if (order.before.reaches(i, dep)) continue;
      order.before.add(i, dep);
      order.deps.push_back(dep);
      level = std::max(level, order.levels[dep]);
    }
    std::reverse(order.deps.begin() + first, order.deps.end());
    order.deps_of.push_back({first, static_cast<uint32_t>(order.deps.size()) - first});
    order.levels.push_back(entry.fence ? level : level + 1);
    if (entry.fence) fence = i;
  }
  return order;
}

}  // namespace refrain::graph
