#include "refrain/graph/summary.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <span>
#include <tuple>
#include <utility>

namespace refrain::graph {
namespace {

using backend::Effect;
using Entry = AccessSummary::Entry;

/// Where an entry begins or ends.
struct Edge {
  uint64_t allocation;
  size_t at;
  Effect effect;
  int step;  ///< 1: begins, -1: ends
};

/// For each byte the effect of all entries that cover it, in as few entries as there can be.
std::vector<Entry> combined(std::span<const Entry> entries) {
  std::vector<Edge> edges;
  edges.reserve(2 * entries.size());
  for (const Entry& entry : entries) {
    if (entry.begin >= entry.end) continue;
    edges.push_back({entry.allocation, entry.begin, entry.effect, 1});
    edges.push_back({entry.allocation, entry.end, entry.effect, -1});
  }
  std::ranges::sort(edges, {}, [](const Edge& edge) { return std::tuple(edge.allocation, edge.at); });
  std::vector<Entry> result;
  std::array<int, 3> covering{};  // entries of each effect
  for (size_t i = 0; i < edges.size();) {
    const Edge here = edges[i];
    for (; i < edges.size() && edges[i].allocation == here.allocation && edges[i].at == here.at; ++i)
      covering[static_cast<size_t>(edges[i].effect)] += edges[i].step;
    const auto [reads, accumulations, writes] = covering;
    if (reads + accumulations + writes == 0) continue;
    const Effect effect = writes != 0 || (reads != 0 && accumulations != 0) ? Effect::write
                          : reads != 0                                      ? Effect::read
                                                                            : Effect::accumulate;
    Entry next{here.allocation, here.at, edges[i].at, effect};  // what covers this byte ends further on
    if (!result.empty() && result.back().allocation == next.allocation && result.back().end == next.begin &&
        result.back().effect == effect) {
      result.back().end = next.end;
    } else {
      result.push_back(next);
    }
  }
  return result;
}

}  // namespace

AccessSummary summarize(const backend::PlanData& plan, const backend::BufferView& arena) {
  std::vector<Entry> entries;
  bool unknown = false;
  for (const backend::PlanCommand& command : plan.commands) {
    unknown = unknown || (command.kernel != nullptr && command.kernel->op->unknown_access);
    for (uint32_t a = command.args.first; a < command.args.first + command.args.count; ++a) {
      const backend::Argument& arg = plan.args[a];
      if (arg.view.allocation == nullptr) continue;
      entries.push_back({arg.view.allocation->id, arg.view.offset_bytes,
                         arg.view.offset_bytes + arg.view.bytes, backend::effect_of(arg.access)});
    }
  }
  if (arena.allocation != nullptr) {
    // Whatever is read of the arena has been written there before, so it is written as a whole.
    entries.push_back(
        {arena.allocation->id, arena.offset_bytes, arena.offset_bytes + plan.arena_bytes, Effect::write});
  }
  return {combined(entries), unknown};
}

namespace {

/// Bytes as disjoint ranges.
class Coverage {
 public:
  /// Calls `each(begin, end)` for the parts of [begin, end) that are not covered.
  template <class Each>
  void gaps(uint64_t allocation, size_t begin, size_t end, Each each) const {
    auto range = ranges_.upper_bound({allocation, begin});
    if (range != ranges_.begin()) --range;
    for (; range != ranges_.end() && range->first < std::pair{allocation, end}; ++range) {
      if (range->first.first != allocation || range->second <= begin) continue;
      if (begin < range->first.second) each(begin, range->first.second);
      begin = range->second;
    }
    if (begin < end) each(begin, end);
  }

  void add(uint64_t allocation, size_t begin, size_t end) {
    if (begin >= end) return;
    auto range = ranges_.upper_bound({allocation, begin});
    if (range != ranges_.begin()) {
      const auto before = std::prev(range);
      if (before->first.first == allocation && before->second >= begin) range = before;
    }
    while (range != ranges_.end() && range->first.first == allocation && range->first.second <= end) {
      begin = std::min(begin, range->first.second);
      end = std::max(end, range->second);
      range = ranges_.erase(range);
    }
    ranges_[{allocation, begin}] = end;
  }

  std::vector<Entry> entries() const {
    std::vector<Entry> entries;
    for (const auto& [key, end] : ranges_) entries.push_back({key.first, key.second, end});
    return entries;
  }

 private:
  std::map<std::pair<uint64_t, size_t>, size_t> ranges_;  // allocation and begin: end
};

}  // namespace

ValueSummary summarize_values(const backend::PlanData& plan, const backend::BufferView& arena) {
  Coverage read, whole;
  const auto take = [&](const backend::Argument& arg) {
    const backend::BufferView& view = arg.view;
    if (view.allocation == nullptr || view.bytes == 0) return;
    if (arg.access != backend::Access::in && arg.access != backend::Access::inout) return;
    const uint64_t id = view.allocation->id;
    whole.gaps(id, view.offset_bytes, view.offset_bytes + view.bytes,
               [&](size_t begin, size_t end) { read.add(id, begin, end); });
  };
  const auto run = [&](const backend::OpSchema& op, uint32_t first, bool live) {
    const auto& specs = op.args;
    for (size_t i = 0; i < specs.size(); ++i) take(plan.args[first + i]);
    for (size_t i = 0; i < specs.size(); ++i) {
      const backend::Argument& arg = plan.args[first + i];
      if (arg.access != backend::Access::out || arg.view.allocation == nullptr) continue;
      if (live && specs[i].rows) continue;
      whole.add(arg.view.allocation->id, arg.view.offset_bytes, arg.view.offset_bytes + arg.view.bytes);
    }
  };
  for (const backend::PlanCommand& command : plan.commands) {
    const bool live = command.live_arg != backend::kNone;
    if (live) take(plan.args[command.args.first + command.live_arg]);
    switch (command.kind) {
      case backend::CommandKind::kernel:
        run(*command.kernel->op, command.args.first, live);
        break;
      case backend::CommandKind::fused_group: {
        const backend::Range& members = plan.groups[command.group].members;
        for (uint32_t m = members.first; m < members.first + members.count; ++m)
          run(*plan.members[m].kernel->op, plan.members[m].args.first, live);
        break;
      }
      case backend::CommandKind::group_kernel:
        for (uint32_t m = command.placed.first; m < command.placed.first + command.placed.count; ++m)
          run(*plan.placed[m].op, plan.placed[m].args.first, live);
        break;
      case backend::CommandKind::fence:
        break;
    }
  }
  if (arena.allocation != nullptr)
    whole.add(arena.allocation->id, arena.offset_bytes, arena.offset_bytes + plan.arena_bytes);
  return {read.entries(), whole.entries()};
}

bool conflicts(const AccessSummary& a, const AccessSummary& b) {
  if (a.unknown || b.unknown) return true;
  auto x = a.entries.begin();
  auto y = b.entries.begin();
  while (x != a.entries.end() && y != b.entries.end()) {
    if (x->allocation == y->allocation && backend::conflict(x->effect, y->effect) && x->begin < y->end &&
        y->begin < x->end) {
      return true;
    }
    // The one that ends first meets nothing further on.
    if (std::tie(x->allocation, x->end) <= std::tie(y->allocation, y->end)) {
      ++x;
    } else {
      ++y;
    }
  }
  return false;
}

}  // namespace refrain::graph
