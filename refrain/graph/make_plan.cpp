#include "refrain/graph/make_plan.h"

#include <algorithm>
#include <numeric>

#include "refrain/core/error.h"
#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/memory.h"

namespace refrain::graph {
namespace {

// Ids of memories for the hazard pass. Allocation ids start at 1; each temp is a memory of its own until the
// arena is planned, and then the arena is one.
constexpr uint64_t kArenaMemory = 0;
constexpr uint64_t kFirstTempMemory = uint64_t{1} << 63;

/// What each command touches. With a memory plan, temps are bytes of the arena.
AccessList accesses(const LoweredGraph& graph, const MemoryPlan* memory) {
  AccessList list;
  list.commands.reserve(graph.commands.size());
  for (const device::Command& command : graph.commands) {
    const auto first = static_cast<uint32_t>(list.ranges.size());
    for (uint32_t a = command.args.first; a < command.args.first + command.args.count; ++a) {
      const LoweredArgument& arg = graph.args[a];
      if (arg.access == device::Access::status || arg.view.bytes == 0) continue;
      RangeAccess range;
      range.begin = arg.view.offset_bytes;
      if (arg.temp == kNone) {
        range.memory = arg.view.allocation->id;
      } else if (memory == nullptr) {
        range.memory = kFirstTempMemory + arg.temp;
      } else {
        range.memory = kArenaMemory;
        range.begin += memory->offsets_bytes[arg.temp];
      }
      range.end = range.begin + arg.view.bytes;
      range.write = arg.access != device::Access::in;
      list.ranges.push_back(range);
    }
    list.commands.push_back({{first, static_cast<uint32_t>(list.ranges.size()) - first},
                             command.kind == device::CommandKind::fence});
  }
  return list;
}

}  // namespace

std::pair<device::Plan, PlanReport> make_plan(ComputeGraph&& graph, std::span<const device::Kernel> kernels,
                                              const device::DeviceInfo& info, const PlanOptions& options) {
  expand(graph, options.mode);
  LoweredGraph lowered = lower(graph, kernels, info);
  const Order values = derive_order(accesses(lowered, nullptr));
  const MemoryPlan memory = plan_memory(lowered, values, options.reuse_memory);
  const Order order = derive_order(accesses(lowered, &memory));
  if (order.deps != values.deps) throw Error("[plan] sharing memory changed the order of commands");

  device::Plan plan;
  plan.commands = std::move(lowered.commands);
  plan.deps = order.deps;
  plan.constants = std::move(lowered.constants);
  plan.labels = std::move(lowered.labels);
  plan.arena_bytes = memory.arena_bytes;
  plan.args.reserve(lowered.args.size());
  for (const LoweredArgument& arg : lowered.args) {
    device::BufferView view = arg.view;
    if (arg.temp != kNone) view.offset_bytes += memory.offsets_bytes[arg.temp];
    plan.args.push_back({view, arg.access, arg.sealed});
  }

  PlanReport report;
  for (size_t i = 0; i < plan.commands.size(); ++i) {
    device::Command& command = plan.commands[i];
    command.deps = order.deps_of[i];
    command.level = order.levels[i];
    report.commands += command.kind != device::CommandKind::fence;
    report.levels = std::max<size_t>(report.levels, command.level);
  }
  report.edges = plan.deps.size();
  report.conflicts = order.conflicts;
  report.temp_bytes = std::accumulate(lowered.temp_bytes.begin(), lowered.temp_bytes.end(), size_t{0});
  report.scratch_bytes = lowered.scratch_bytes;
  report.arena_bytes = plan.arena_bytes;

  if (options.check) {
    if (const auto unordered = check_order(plan); !unordered.empty()) {
      throw Error("[plan] " + unordered.front().reason);
    }
  }
  return {std::move(plan), report};
}

}  // namespace refrain::graph
