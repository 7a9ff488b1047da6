#include "refrain/graph/summary.h"

#include <algorithm>
#include <array>
#include <span>
#include <tuple>

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
