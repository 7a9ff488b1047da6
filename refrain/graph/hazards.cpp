#include "refrain/graph/hazards.h"

#include <algorithm>
#include <bit>

namespace refrain::graph {

using device::kNone;

namespace {

/// Spreads ids, which are mostly consecutive, over the upper bits.
size_t slot_of(uint64_t id, size_t slots) {
  return static_cast<size_t>((id * 0x9E3779B97F4A7C15u) >> (64 - std::countr_zero(slots)));
}

}  // namespace

void HazardTracker::grow() {
  table_.assign(std::max<size_t>(64, table_.size() * 2), kNone);
  for (uint32_t i = 0; i < memories_.size(); ++i) {
    size_t slot = slot_of(memories_[i].id, table_.size());
    while (table_[slot] != kNone) slot = (slot + 1) & (table_.size() - 1);
    table_[slot] = i;
  }
}

inline HazardTracker::Memory& HazardTracker::find(uint64_t id) {
  if (memories_.size() * 2 >= table_.size()) grow();
  size_t slot = slot_of(id, table_.size());
  while (table_[slot] != kNone) {
    Memory& memory = memories_[table_[slot]];
    if (memory.id == id) {
      if (memory.epoch != epoch_) {
        memory.segments.clear();
        memory.epoch = epoch_;
      }
      return memory;
    }
    slot = (slot + 1) & (table_.size() - 1);
  }
  table_[slot] = static_cast<uint32_t>(memories_.size());
  return memories_.emplace_back(Memory{id, epoch_, 0, {}});
}

inline void HazardTracker::depend(uint32_t command) {
  if (command == kNone || command == count_) return;
  uint32_t& seen = seen_[command - (fence_ == kNone ? 0 : fence_ + 1)];
  if (seen == count_ + 1) return;
  seen = count_ + 1;
  deps_.push_back(command);
}

inline void HazardTracker::depend_on_readers(uint32_t readers) {
  for (; readers != kNone; readers = readers_[readers].next) depend(readers_[readers].command);
}

inline void HazardTracker::read(Segment& segment) {
  depend(segment.writer);
  if (segment.readers != kNone && readers_[segment.readers].command == count_) return;
  readers_.push_back({count_, segment.readers});
  segment.readers = static_cast<uint32_t>(readers_.size()) - 1;
}

/// The first segment that ends past `at`: by doubling steps from `hint`, then by halving what they enclose.
inline size_t HazardTracker::first_past(const std::vector<Segment>& segments, size_t hint, size_t at) {
  const Segment* const data = segments.data();
  size_t low = std::min(hint, segments.size()), high = low, step = 1;  // the result is in [low, high]
  if (low != segments.size() && data[low].end <= at) {
    do {
      low = high + 1;
      high = std::min(high + step, segments.size());
      step *= 2;
    } while (high != segments.size() && data[high].end <= at);
  } else {
    while (low != 0 && data[low - 1].end > at) {
      high = low - 1;
      low -= std::min(low, step);
      step *= 2;
    }
  }
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (data[middle].end <= at) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Puts pieces_ in the place of segments [first, last).
void HazardTracker::splice(Memory& memory, size_t first, size_t last) {
  std::vector<Segment>& segments = memory.segments;
  const size_t common = std::min(pieces_.size(), last - first);
  const auto at = segments.begin() + static_cast<ptrdiff_t>(first + common);
  std::copy_n(pieces_.begin(), common, segments.begin() + static_cast<ptrdiff_t>(first));
  if (pieces_.size() > common) {
    segments.insert(at, pieces_.begin() + static_cast<ptrdiff_t>(common), pieces_.end());
  } else {
    segments.erase(at, segments.begin() + static_cast<ptrdiff_t>(last));
  }
}

void HazardTracker::access(Memory& memory, const RangeAccess& range) {
  std::vector<Segment>& segments = memory.segments;
  const size_t first = first_past(segments, memory.next, range.begin);

  if (first == segments.size() || segments[first].begin >= range.end) {
    Segment segment{range.begin, range.end, kNone, kNone};
    if (range.write) {
      segment.writer = count_;
    } else {
      read(segment);
    }
    segments.insert(segments.begin() + static_cast<ptrdiff_t>(first), segment);
    memory.next = first + 1;
    return;
  }
  if (segments[first].begin == range.begin && segments[first].end == range.end) {
    Segment& segment = segments[first];
    if (range.write) {
      depend(segment.writer);
      depend_on_readers(segment.readers);
      segment.writer = count_;
      segment.readers = kNone;
    } else {
      read(segment);
    }
    memory.next = first + 1;
    return;
  }

  pieces_.clear();
  size_t last = first;
  size_t at = range.begin;
  if (segments[first].begin < range.begin) {
    pieces_.push_back(segments[first]);
    pieces_.back().end = range.begin;
  }
  if (range.write) pieces_.push_back({range.begin, range.end, count_, kNone});
  for (; last < segments.size() && segments[last].begin < range.end; ++last) {
    Segment segment = segments[last];
    if (range.write) {
      depend(segment.writer);
      depend_on_readers(segment.readers);
      continue;
    }
    segment.begin = std::max(segment.begin, range.begin);
    segment.end = std::min(segment.end, range.end);
    if (at < segment.begin) {
      pieces_.push_back({at, segment.begin, kNone, kNone});
      read(pieces_.back());
    }
    read(segment);
    pieces_.push_back(segment);
    at = segment.end;
  }
  const Segment& behind = segments[last - 1];
  if (behind.end > range.end) {
    pieces_.push_back(behind);
    pieces_.back().begin = range.end;
  } else if (!range.write && at < range.end) {
    pieces_.push_back({at, range.end, kNone, kNone});
    read(pieces_.back());
  }
  splice(memory, first, last);
  memory.next = first + pieces_.size();
}

std::span<const uint32_t> HazardTracker::add(std::span<const RangeAccess> ranges) {
  deps_.clear();
  seen_.push_back(0);
  for (const RangeAccess& range : ranges) {
    if (range.begin < range.end) access(find(range.memory), range);
  }
  ++count_;
  return deps_;
}

void HazardTracker::add_fence() {
  fence_ = count_++;
  ++epoch_;
  seen_.clear();
  readers_.clear();
}

void HazardTracker::reset() {
  add_fence();
  fence_ = kNone;
  count_ = 0;
}

Order derive_order(const AccessList& accesses) {
  const size_t count = accesses.commands.size();
  Order order;
  order.deps_of.reserve(count);
  order.levels.reserve(count);
  order.deps.reserve(2 * count);
  order.before = Reachability(count);

  HazardTracker tracker;
  std::vector<uint64_t> pending((count + 63) / 64);  // candidates not yet found redundant, as bits
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t fence = tracker.last_fence();
    size_t lowest = i / 64, highest = 0;
    const auto candidate = [&](uint32_t command) {
      pending[command / 64] |= uint64_t{1} << (command % 64);
      lowest = std::min<size_t>(lowest, command / 64);
      highest = std::max<size_t>(highest, command / 64);
    };
    if (fence != kNone) candidate(fence);
    if (accesses.commands[i].fence) {
      for (uint32_t j = fence == kNone ? 0 : fence + 1; j < i; ++j) candidate(j);
      tracker.add_fence();
    } else {
      const std::span<const uint32_t> deps = tracker.add(accesses.ranges_of(i));
      for (const uint32_t dep : deps) candidate(dep);
      order.conflicts += deps.size();
    }

    // Latest first: an edge is redundant exactly when a later kept one already reaches its target.
    const auto first = static_cast<uint32_t>(order.deps.size());
    const uint64_t* reached = order.before.row(i);
    uint32_t level = 0;
    for (size_t w = highest + 1; w-- > lowest;) {
      while (pending[w] != 0) {
        const auto dep =
            static_cast<uint32_t>(w * 64 + 63) - static_cast<uint32_t>(std::countl_zero(pending[w]));
        order.before.add(i, dep);
        order.deps.push_back(dep);
        level = std::max(level, order.levels[dep]);
        for (size_t v = lowest; v <= w; ++v) pending[v] &= ~reached[v];
      }
    }
    std::reverse(order.deps.begin() + first, order.deps.end());
    order.deps_of.push_back({first, static_cast<uint32_t>(order.deps.size()) - first});
    order.levels.push_back(accesses.commands[i].fence ? level : level + 1);
  }
  return order;
}

}  // namespace refrain::graph
