// The order that accesses ask for, straight from its definition and as slow as that: a judge of graph/hazards
// and graph/check that shares nothing with them.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <functional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/plan.h"
#include "refrain/graph/hazards.h"

namespace refrain::null_tests {

inline constexpr size_t kMaxCommands = 512;

/// Row i: the commands that command i follows.
using Relation = std::vector<std::bitset<kMaxCommands>>;
using Pairs = std::set<std::pair<uint32_t, uint32_t>>;  ///< (later, earlier)

inline bool conflict(const graph::RangeAccess& a, const graph::RangeAccess& b) {
  const bool commute = a.effect == b.effect && a.effect != backend::Effect::write;
  return a.memory == b.memory && !commute && std::max(a.begin, b.begin) < std::min(a.end, b.end);
}

inline bool conflict(const graph::AccessList& list, size_t a, size_t b) {
  const auto &x = list.commands[a], &y = list.commands[b];
  if (x.fence || y.fence) return true;
  for (uint32_t i = 0; i < x.ranges.count; ++i) {
    for (uint32_t j = 0; j < y.ranges.count; ++j) {
      if (conflict(list.ranges[x.ranges.first + i], list.ranges[y.ranges.first + j])) return true;
    }
  }
  return false;
}

inline Relation closure(Relation relation) {
  for (size_t k = 0; k < relation.size(); ++k) {
    for (auto& row : relation) {
      if (row[k]) row |= relation[k];
    }
  }
  return relation;
}

inline Relation closure(const graph::AccessList& list) {
  Relation relation(list.commands.size());
  for (size_t i = 0; i < relation.size(); ++i) {
    for (size_t j = 0; j < i; ++j) relation[i][j] = conflict(list, i, j);
  }
  return closure(std::move(relation));
}

/// The pairs of a closure with nothing between them.
inline Pairs reduction(const Relation& before) {
  Pairs pairs;
  for (uint32_t i = 0; i < before.size(); ++i) {
    for (uint32_t j = 0; j < i; ++j) {
      bool direct = before[i][j];
      for (uint32_t k = j + 1; k < i && direct; ++k) direct = !(before[i][k] && before[k][j]);
      if (direct) pairs.emplace(i, j);
    }
  }
  return pairs;
}

/// Commands of the longest chain that ends at each command, fences not counted.
inline std::vector<uint32_t> levels(const graph::AccessList& list, const Relation& before) {
  std::vector<uint32_t> longest(before.size());
  for (size_t i = 0; i < before.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (before[i][j]) longest[i] = std::max(longest[i], longest[j]);
    }
    longest[i] += !list.commands[i].fence;
  }
  return longest;
}

inline backend::Effect effect(backend::Access access) {
  switch (access) {
    case backend::Access::in:
      return backend::Effect::read;
    case backend::Access::accumulate:
      return backend::Effect::accumulate;
    default:
      return backend::Effect::write;
  }
}

/// What the commands of a plan touch, the arena being memory 0.
inline graph::AccessList accesses(const backend::PlanData& plan) {
  graph::AccessList list;
  for (const backend::PlanCommand& command : plan.commands) {
    graph::AccessList::Entry entry{{static_cast<uint32_t>(list.ranges.size()), 0},
                                   command.kind == backend::CommandKind::fence};
    for (uint32_t a = 0; a < command.args.count; ++a) {
      const backend::Argument& arg = plan.args[command.args.first + a];
      list.ranges.push_back({arg.view.allocation == nullptr ? 0 : arg.view.allocation->id,
                             arg.view.offset_bytes, arg.view.offset_bytes + arg.view.bytes,
                             effect(arg.access)});
      ++entry.ranges.count;
    }
    list.commands.push_back(entry);
  }
  return list;
}

/// The closure of the edges that a plan stores.
inline Relation stored_order(const backend::PlanData& plan) {
  Relation relation(plan.commands.size());
  for (size_t i = 0; i < relation.size(); ++i) {
    const backend::Range& deps = plan.commands[i].deps;
    for (uint32_t d = 0; d < deps.count; ++d) relation[i][plan.deps[deps.first + d]] = true;
  }
  return closure(std::move(relation));
}

/// A list of commands that crowd a few small memories: views, overlaps, neighbours, nests, empty ranges,
/// fences.
inline graph::AccessList random_accesses(std::mt19937& rng, uint32_t most_commands) {
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(rng() % n); };
  graph::AccessList list;
  const uint32_t commands = below(most_commands + 1), memories = 1 + below(3), extent = below(2) ? 8 : 64;
  const uint32_t write_percent = 10 + below(60), fence_percent = below(3) * 3, most_ranges = 1 + below(4);
  for (uint32_t i = 0; i < commands; ++i) {
    graph::AccessList::Entry entry{{static_cast<uint32_t>(list.ranges.size()), 0},
                                   below(100) < fence_percent};
    if (!entry.fence) entry.ranges.count = below(most_ranges + 1);
    // No command reads what it accumulates.
    const backend::Effect shared = below(3) == 0 ? backend::Effect::accumulate : backend::Effect::read;
    for (uint32_t r = 0; r < entry.ranges.count; ++r) {
      size_t begin = below(extent), end = begin + below(below(4) ? 8 : extent);
      if (below(8) == 0 && r != 0) {  // in place: what this command already has, once more
        begin = list.ranges.back().begin;
        end = list.ranges.back().end;
      }
      list.ranges.push_back(
          {1 + below(memories), begin, end, below(100) < write_percent ? backend::Effect::write : shared});
    }
    list.commands.push_back(entry);
  }
  return list;
}

/// What derive_order says of `list` that the definition denies; empty when they agree.
inline std::string disagreement(const graph::AccessList& list) {
  const graph::Order order = graph::derive_order(list);
  const Relation before = closure(list);
  const size_t count = list.commands.size();
  if (order.deps_of.size() != count || order.levels.size() != count) return "sizes differ";
  Pairs stored;
  for (uint32_t i = 0; i < count; ++i) {
    const auto deps = std::span(order.deps).subspan(order.deps_of[i].first, order.deps_of[i].count);
    if (std::ranges::adjacent_find(deps, std::greater_equal<>()) != deps.end()) {
      return "edges of " + std::to_string(i) + " are not ascending";
    }
    for (const uint32_t dep : deps) stored.emplace(i, dep);
    for (uint32_t j = 0; j < i; ++j) {
      if (order.before.reaches(i, j) != before[i][j]) {
        return "closure differs at " + std::to_string(i) + ", " + std::to_string(j);
      }
    }
  }
  if (stored.size() != order.deps.size()) return "an edge is stored twice";
  if (stored != reduction(before)) return "edges are not the transitive reduction";
  if (order.levels != levels(list, before)) return "levels are not the longest chains";
  return {};
}

enum class Hostility { random, latest_first, longest_path_last };

/// An order that the edges of a plan allow and that no kind device would choose.
inline std::vector<uint32_t> hostile_order(const backend::PlanData& plan, Hostility hostility,
                                           std::mt19937& rng) {
  const auto count = static_cast<uint32_t>(plan.commands.size());
  std::vector<uint32_t> waiting(count), height(count), ready, order;
  std::vector<std::vector<uint32_t>> followers(count);
  for (uint32_t i = 0; i < count; ++i) {
    waiting[i] = plan.commands[i].deps.count;
    for (uint32_t d = 0; d < waiting[i]; ++d)
      followers[plan.deps[plan.commands[i].deps.first + d]].push_back(i);
    if (waiting[i] == 0) ready.push_back(i);
  }
  for (uint32_t i = count; i-- > 0;) {
    for (const uint32_t follower : followers[i]) height[i] = std::max(height[i], height[follower] + 1);
  }
  while (!ready.empty()) {
    auto chosen = ready.begin() + static_cast<ptrdiff_t>(rng() % ready.size());
    if (hostility == Hostility::latest_first) chosen = std::ranges::max_element(ready);
    if (hostility == Hostility::longest_path_last)
      chosen = std::ranges::min_element(ready, {}, [&](uint32_t i) { return height[i]; });
    const uint32_t command = *chosen;
    ready.erase(chosen);
    order.push_back(command);
    for (const uint32_t follower : followers[command]) {
      if (--waiting[follower] == 0) ready.push_back(follower);
    }
  }
  return order;
}

}  // namespace refrain::null_tests
