#include "refrain/graph/make_plan.h"

#include <algorithm>
#include <numeric>

#include "refrain/core/error.h"
#include "refrain/graph/accesses.h"
#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/fuse.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/memory.h"

namespace refrain::graph {
std::pair<device::Plan, PlanReport> make_plan(ComputeGraph&& graph, std::span<const device::Kernel> kernels,
                                              const device::DeviceInfo& info, const PlanOptions& options) {
  PlanReport report;
  const auto levels = [&graph] {
    const std::vector<uint32_t> all = derive_order(accesses(graph)).levels;
    return all.empty() ? size_t{0} : size_t{*std::ranges::max_element(all)};
  };
  expand(graph, options.mode);
  report.recorded_commands = static_cast<size_t>(
      std::ranges::count_if(graph.commands, [](const Command& command) { return !command.fence(); }));
  if (options.fuse) {
    FuseReport fused = fuse(graph, kernels, info);
    report.recorded_levels = fused.recorded_levels;
    report.fusions = std::move(fused.fusions);
    report.misses = std::move(fused.misses);
  }
  if (!options.fuse) report.recorded_levels = levels();
  report.fused_levels = report.fusions.empty() ? report.recorded_levels : levels();
  LoweredGraph lowered = lower(graph, kernels, info);
  const Order values = derive_order(accesses(lowered));
  const MemoryPlan memory = plan_memory(lowered, values, options.reuse_memory);
  const Order order = derive_order(accesses(lowered, &memory));
  if (order.deps != values.deps) throw Error("[plan] sharing memory changed the order of commands");

  device::Plan plan;
  plan.commands = std::move(lowered.commands);
  plan.deps = order.deps;
  plan.constants = std::move(lowered.constants);
  plan.labels = std::move(lowered.labels);
  plan.groups = std::move(lowered.groups);
  plan.members = std::move(lowered.members);
  plan.components = std::move(lowered.components);
  plan.arena_bytes = memory.arena_bytes;
  plan.args.reserve(lowered.args.size());
  for (const LoweredArgument& arg : lowered.args) {
    device::BufferView view = arg.view;
    if (arg.temp != kNone) view.offset_bytes += memory.offsets_bytes[arg.temp];
    plan.args.push_back({view, arg.access, arg.sealed});
  }

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
  return {std::move(plan), std::move(report)};
}

}  // namespace refrain::graph
