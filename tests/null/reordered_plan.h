// Plans with their commands in other orders, for tests of the passes that change the order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/memory.h"
#include "tests/null/order_oracle.h"

namespace refrain::null_tests {

/// What the commands of a lowered graph touch, each temp being a memory of its own.
inline graph::AccessList value_accesses(const graph::LoweredGraph& lowered) {
  graph::AccessList list;
  for (const backend::PlanCommand& command : lowered.commands) {
    graph::AccessList::Entry entry{{static_cast<uint32_t>(list.ranges.size()), 0},
                                   command.kind == backend::CommandKind::fence};
    for (uint32_t a = command.args.first; a < command.args.first + command.args.count; ++a) {
      const graph::LoweredArgument& arg = lowered.args[a];
      if (arg.view.bytes == 0) continue;
      list.ranges.push_back(
          {arg.temp != graph::kNone ? (uint64_t{1} << 40) + arg.temp : arg.view.allocation->id,
           arg.view.offset_bytes, arg.view.offset_bytes + arg.view.bytes, effect(arg.access)});
      ++entry.ranges.count;
    }
    list.commands.push_back(entry);
  }
  return list;
}

/// The same commands and edges, with commands in another order that the edges allow, on the same memory.
inline backend::PlanData in_order(const backend::PlanData& plan, std::span<const uint32_t> order) {
  backend::PlanData result = plan;
  std::vector<uint32_t> position(order.size());
  for (uint32_t i = 0; i < order.size(); ++i) position[order[i]] = i;
  for (uint32_t i = 0; i < order.size(); ++i) result.commands[i] = plan.commands[order[i]];
  for (uint32_t& dep : result.deps) dep = position[dep];
  return result;
}

/// The plan of a lowered graph whose commands come in another order: edges and memory follow from that order.
inline backend::PlanData planned(const graph::LoweredGraph& lowered, std::span<const uint32_t> order) {
  graph::LoweredGraph moved = lowered;
  for (uint32_t i = 0; i < order.size(); ++i) moved.commands[i] = lowered.commands[order[i]];
  const graph::MemoryPlan memory =
      graph::plan_memory(moved, graph::derive_order(value_accesses(moved)), /*reuse=*/true);
  backend::PlanData plan;
  plan.constants = moved.constants;
  plan.labels = moved.labels;
  plan.groups = moved.groups;
  plan.members = moved.members;
  plan.components = moved.components;
  plan.arena_bytes = memory.arena_bytes;
  for (const graph::LoweredArgument& arg : moved.args) {
    backend::BufferView view = arg.view;
    if (arg.temp != graph::kNone) view.offset_bytes += memory.offsets_bytes[arg.temp];
    plan.args.push_back({view, arg.access, arg.sealed});
  }
  plan.commands = std::move(moved.commands);
  const graph::Order edges = graph::derive_order(accesses(plan));
  plan.deps = edges.deps;
  for (size_t i = 0; i < plan.commands.size(); ++i) {
    plan.commands[i].deps = edges.deps_of[i];
    plan.commands[i].level = edges.levels[i];
  }
  return plan;
}

/// What is wrong with `order` as another order of `list`, by the definition: every conflicting pair, and each
/// fence with everything, comes in the recorded order.
inline std::string order_faults(const graph::AccessList& list, std::span<const uint32_t> order) {
  if (order.size() != list.commands.size()) return "commands are missing";
  std::vector<uint32_t> position(order.size(), backend::kNone);
  for (uint32_t i = 0; i < order.size(); ++i) {
    if (order[i] >= order.size() || position[order[i]] != backend::kNone) return "not a permutation";
    position[order[i]] = i;
  }
  for (uint32_t later = 0; later < order.size(); ++later) {
    for (uint32_t earlier = 0; earlier < later; ++earlier) {
      if (position[earlier] > position[later] && conflict(list, earlier, later)) {
        return std::to_string(later) + " has passed " + std::to_string(earlier);
      }
    }
  }
  return {};
}

}  // namespace refrain::null_tests
