#include "refrain/graph/make_plan.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <numeric>

#include "refrain/core/error.h"
#include "refrain/graph/accesses.h"
#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/fuse.h"
#include "refrain/graph/fuse_sets.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/memory.h"
#include "refrain/graph/reorder.h"
#include "refrain/graph/rewrite.h"

namespace refrain::graph {
namespace {

#ifdef NDEBUG
constexpr bool kCheckUnlessTold = false;
#else
constexpr bool kCheckUnlessTold = true;
#endif

/// Adds up where planning spends its time.
class Stopwatch {
 public:
  explicit Stopwatch(std::vector<PassTime>& passes) : passes_(passes) {}
  /// The time since the last lap was the pass `name`'s.
  void lap(const char* name) {
    const auto now = std::chrono::steady_clock::now();
    passes_.push_back({name, std::chrono::duration<double, std::micro>(now - last_).count()});
    last_ = now;
  }

 private:
  std::vector<PassTime>& passes_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

size_t greatest(const std::vector<uint32_t>& levels) {
  return levels.empty() ? 0 : *std::ranges::max_element(levels);
}

/// Barriers between runs of commands without a conflict.
size_t barriers(const AccessList& list, const Order& order) {
  const size_t sections = count_sections(list, order);
  return sections == 0 ? 0 : sections - 1;
}

/// Puts the commands in the order asked for.
void reorder(LoweredGraph& lowered, const AccessList& list, Order& order, CommandOrder by,
             PlanReport& report) {
  report.barriers_before = barriers(list, order);
  if (by == CommandOrder::recorded) return;
  Reordering found = order_by_levels(list, order, access_costs(list));
  std::vector<backend::PlanCommand> commands;
  commands.reserve(lowered.commands.size());
  for (const uint32_t i : found.order) commands.push_back(lowered.commands[i]);
  lowered.commands = std::move(commands);
  order = std::move(found.derived);
  report.moved = found.moved;
}

}  // namespace

std::pair<backend::PlanData, PlanReport> make_plan(ComputeGraph&& graph, const backend::KernelTables& tables,
                                                   const backend::DeviceInfo& device,
                                                   const PlanOptions& options) {
  PlanReport report;
  backend::DeviceInfo info = device;
  info.features = granted(info.features, options.mode);
  if (options.most_fused_rows != 0) info.most_fused_rows = options.most_fused_rows;
  Stopwatch watch(report.passes);
  const size_t recorded = graph.commands.size();
  for (uint32_t i = 0; i < recorded; ++i) graph.commands[i].recorded = i;
  expand(graph, options.mode);
  report.recorded_commands = static_cast<size_t>(
      std::ranges::count_if(graph.commands, [](const Command& command) { return !command.fence(); }));
  RewriteReport rewritten = rewrite(graph, tables, info, options.splits);
  report.rewrites = std::move(rewritten.rewrites);
  report.misses = std::move(rewritten.misses);
  watch.lap("expand");
  if (options.fuse) {
    FuseReport fused =
        info.composes ? fuse(graph, tables.kernels, info) : fuse_sets(graph, tables.groups, info);
    report.recorded_levels = fused.recorded_levels;
    report.fusions = std::move(fused.fusions);
    std::ranges::move(fused.misses, std::back_inserter(report.misses));
    watch.lap("fuse");
  }
  LoweredGraph lowered = lower(graph, tables.kernels, info);
  lowered.numerics.report(report);
  report.numerics_of.resize(recorded, kNone);
  watch.lap("lower");
  AccessList list = accesses(lowered);
  Order values = derive_order(list);
  // Neither scratch nor values that have lost their memory order two commands.
  report.fused_levels = greatest(values.levels);
  if (!options.fuse) report.recorded_levels = report.fused_levels;
  watch.lap("hazards");
  reorder(lowered, list, values, options.order, report);
  watch.lap("reorder");
  const MemoryPlan memory = plan_memory(lowered, values, options.reuse_memory);
  watch.lap("memory");
  values.before = Reachability();  // so that there is one closure at a time
  list = accesses(lowered, &memory);
  const Order order = derive_order(list);
  if (order.deps != values.deps) throw Error("[plan] sharing memory changed the order of commands");
  report.barriers = barriers(list, order);
  watch.lap("hazards again");

  backend::PlanData plan;
  plan.commands = std::move(lowered.commands);
  plan.deps = order.deps;
  plan.constants = std::move(lowered.constants);
  plan.labels = std::move(lowered.labels);
  plan.groups = std::move(lowered.groups);
  plan.members = std::move(lowered.members);
  plan.components = std::move(lowered.components);
  plan.placed = std::move(lowered.placed);
  plan.ticket_bytes = lowered.ticket_bytes;
  plan.arena_bytes = memory.arena_bytes;
  plan.args.reserve(lowered.args.size());
  for (const LoweredArgument& arg : lowered.args) {
    backend::BufferView view = arg.view;
    if (arg.temp != kNone) view.offset_bytes += memory.offsets_bytes[arg.temp];
    plan.args.push_back({view, arg.access, arg.sealed});
  }

  for (size_t i = 0; i < plan.commands.size(); ++i) {
    backend::PlanCommand& command = plan.commands[i];
    command.deps = order.deps_of[i];
    command.level = order.levels[i];
    report.commands += command.kind != backend::CommandKind::fence;
    report.levels = std::max<size_t>(report.levels, command.level);
  }
  report.edges = plan.deps.size();
  report.conflicts = order.conflicts;
  report.temp_bytes = std::accumulate(lowered.temp_bytes.begin(), lowered.temp_bytes.end(), size_t{0});
  report.scratch_bytes = lowered.scratch_bytes;
  report.arena_bytes = plan.arena_bytes;

  if (options.check.value_or(kCheckUnlessTold)) {
    if (const auto unordered = check_order(plan); !unordered.empty()) {
      throw Error("[plan] " + unordered.front().reason);
    }
    watch.lap("check");
  }
  return {std::move(plan), std::move(report)};
}

}  // namespace refrain::graph
