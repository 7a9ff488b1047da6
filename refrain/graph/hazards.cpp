#include "refrain/graph/hazards.h"

#include <algorithm>
#include <bit>

namespace refrain::graph {

using backend::Effect;
using backend::kNone;

namespace {

/// Spreads ids, which are mostly consecutive, over the upper bits.
size_t slot_of(uint64_t id, size_t slots) {
  return static_cast<size_t>((id * 0x9E3779B97F4A7C15u) >> (64 - std::countr_zero(slots)));
}

}  // namespace

void HazardTracker::grow() {
  table_.assign(table_.size() * 2, kNone);
  for (uint32_t i = 0; i < memories_.size(); ++i) {
    size_t slot = slot_of(memories_[i].id, table_.size());
    while (table_[slot] != kNone) slot = (slot + 1) & (table_.size() - 1);
    table_[slot] = i;
  }
}

HazardTracker::Memory& HazardTracker::insert(uint64_t id) {
  if ((memories_.size() + 1) * 2 > table_.size()) grow();
  size_t slot = slot_of(id, table_.size());
  while (table_[slot] != kNone) slot = (slot + 1) & (table_.size() - 1);
  table_[slot] = static_cast<uint32_t>(memories_.size());
  Memory& memory = memories_.emplace_back(Memory{id, epoch_, 0, {}});
  memory.segments.reserve(4);
  memory.segments.emplace_back();
  return memory;
}

inline HazardTracker::Memory& HazardTracker::find(uint64_t id) {
  for (size_t slot = slot_of(id, table_.size()); table_[slot] != kNone;
       slot = (slot + 1) & (table_.size() - 1)) {
    Memory& memory = memories_[table_[slot]];
    if (memory.id != id) continue;
    if (memory.epoch != epoch_) {
      memory.segments.assign(1, {});
      memory.epoch = epoch_;
    }
    return memory;
  }
  return insert(id);
}

/// The segment of byte `at`: the one at `hint`, the one before it, or found by halving, without a branch that
/// depends on where it lies.
inline size_t HazardTracker::segment_at(const std::vector<Segment>& segments, size_t hint, size_t at) {
  const size_t count = segments.size();
  for (size_t i = hint; i + 2 > hint && i < count; --i) {
    if (segments[i].begin <= at && (i + 1 == count || segments[i + 1].begin > at)) return i;
  }
  const Segment* first = segments.data();
  for (size_t left = count; left > 1;) {
    const size_t half = left / 2;
    first += first[half].begin <= at ? half : 0;
    left -= half;
  }
  return static_cast<size_t>(first - segments.data());
}

inline void HazardTracker::touch(Segment& segment, Effect effect, Found& found) {
  const auto add_all = [&](uint32_t sharers) {
    for (uint32_t s = sharers; s != kNone; s = sharers_[s].next) found.add(sharers_[s].command);
  };
  found.add(segment.writer);
  if (effect == Effect::write) return add_all(segment.sharers);
  const bool accumulates = effect == Effect::accumulate;
  if (accumulates != segment.accumulated) {
    segment.before = segment.sharers;
    segment.sharers = kNone;
    segment.accumulated = accumulates;
  }
  add_all(segment.before);
  if (segment.sharers == kNone || sharers_[segment.sharers].command != found.self) {
    sharers_.push_back({found.self, segment.sharers});
    segment.sharers = static_cast<uint32_t>(sharers_.size()) - 1;
  }
}

/// An access that is not just to the segment `first`: what of the segments lies outside keeps its state.
void HazardTracker::cut(Memory& memory, size_t first, const RangeAccess& range, Found& found) {
  std::vector<Segment>& segments = memory.segments;
  const Segment left = segments[first];
  Segment right;
  size_t last = first;
  do {
    Segment& segment = segments[last];
    right = segment;
    touch(segment, range.effect, found);
    ++last;
  } while (last < segments.size() && segments[last].begin < range.end);

  const bool before = left.begin < range.begin;
  const bool behind = last == segments.size() || segments[last].begin > range.end;
  const bool write = range.effect == Effect::write;
  const size_t within = write ? 1 : last - first;
  const size_t count = before + within + behind;
  const auto at = segments.begin() + static_cast<ptrdiff_t>(last);
  if (count > last - first) {
    segments.insert(at, count - (last - first), {});
  } else if (count < last - first) {
    segments.erase(at - static_cast<ptrdiff_t>(last - first - count), at);
  }
  Segment* const changed = segments.data() + first;
  if (write) {
    changed[before] = {range.begin, found.self};
  } else if (before) {
    std::copy_backward(changed, changed + within, changed + within + 1);
    changed[1].begin = range.begin;
  }
  if (before) changed[0] = left;
  if (behind) {
    changed[before + within] = right;
    changed[before + within].begin = range.end;
  }
  memory.next = first + before + within;
}

HazardTracker::HazardTracker(size_t commands, size_t ranges) : table_(64, kNone) {
  seen_.reserve(commands + 1);
  deps_.reserve(commands + 1);
  sharers_.reserve(ranges);
}

std::span<const uint32_t> HazardTracker::add(std::span<const RangeAccess> ranges) {
  const uint32_t base = fence_ == kNone ? 0 : fence_ + 1;
  const uint32_t self = count_ - base + 1;
  seen_.resize(self + 1);  // the first behind a fence forgets the rest
  deps_.resize(self + 1);
  seen_[0] = seen_[self] = self;
  Found found{self, deps_.data(), seen_.data(), 0};
  for (const RangeAccess& range : ranges) {
    if (range.begin >= range.end) continue;
    Memory& memory = find(range.memory);
    std::vector<Segment>& segments = memory.segments;
    const size_t first = segment_at(segments, memory.next, range.begin);
    Segment& segment = segments[first];
    if (segment.begin == range.begin && first + 1 < segments.size() &&
        segments[first + 1].begin == range.end) {
      touch(segment, range.effect, found);
      if (range.effect == Effect::write) segment = {range.begin, self};
      memory.next = first + 1;
    } else {
      cut(memory, first, range, found);
    }
  }
  for (size_t i = 0; i < found.count; ++i) deps_[i] += base - 1;
  ++count_;
  return {deps_.data(), found.count};
}

void HazardTracker::add_fence() {
  fence_ = count_++;
  ++epoch_;
  sharers_.clear();
}

void HazardTracker::reset() {
  add_fence();
  fence_ = kNone;
  count_ = 0;
}

Order derive_order(const AccessList& accesses, bool reduced) {
  const size_t count = accesses.commands.size();
  Order order;
  order.deps_of.reserve(count);
  order.levels.reserve(count);
  order.deps.reserve(2 * count);
  if (reduced) order.before = Reachability(count);

  HazardTracker tracker(count, accesses.ranges.size());
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
    uint32_t level = 0;
    for (size_t w = highest + 1; w-- > lowest;) {
      while (pending[w] != 0) {
        const auto dep =
            static_cast<uint32_t>(w * 64 + 63) - static_cast<uint32_t>(std::countl_zero(pending[w]));
        order.deps.push_back(dep);
        level = std::max(level, order.levels[dep]);
        pending[w] &= ~(uint64_t{1} << (dep % 64));
        if (!reduced) continue;
        order.before.add(i, dep);
        const uint64_t* const reached = order.before.row(i);
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
