// Everything that must hold of random recordings through all passes and on a CPU device.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "refrain/graph/fuse.h"
#include "refrain/graph/reorder.h"
#include "refrain/graph/split.h"
#include "refrain/graph/summary.h"
#include "tests/fuzz/fused_plan_faults.h"
#include "tests/fuzz/random_graphs_work.h"
#include "tests/null/random_graph.h"
#include "tests/null/reordered_plan.h"

namespace refrain::null_tests {

/// Commands of the longest chain.
inline size_t longest_chain(const graph::AccessList& list, const Relation& before) {
  const std::vector<uint32_t> longest = levels(list, before);
  return longest.empty() ? 0 : *std::ranges::max_element(longest);
}

/// The plan without one of its edges.
inline backend::PlanData without_edge(const backend::PlanData& plan, uint32_t edge) {
  backend::PlanData result = plan;
  result.deps.erase(result.deps.begin() + edge);
  for (backend::PlanCommand& command : result.commands) {
    if (edge < command.deps.first) {
      --command.deps.first;
    } else if (edge < command.deps.first + command.deps.count) {
      --command.deps.count;
    }
  }
  return result;
}

/// What is wrong with `plan` by itself; empty when nothing is.
inline std::string plan_faults(World& world, const backend::PlanData& plan, size_t chain) {
  if (!graph::check_order(plan).empty()) return "the checker objects";
  const graph::AccessList touched = accesses(plan);
  const Relation stored = stored_order(plan);
  if (stored != closure(touched)) return "an edge is missing, or one too many is stored";
  const std::vector<uint32_t> expected = levels(touched, stored);
  size_t depth = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (plan.commands[i].level != expected[i]) return "a level is not the longest chain";
    depth = std::max<size_t>(depth, plan.commands[i].level);
  }
  if (depth != chain) return "sharing memory has made the longest chain longer";
  if (plan.arena_bytes > World::kArenaBytes) return "the arena of the test is too small";
  world.tally.levels += depth;
  world.tally.longest_chains += chain;
  ++world.tally.plans;
  return {};
}

/// What is wrong with the passes over one recording; empty when nothing is. `plans`: of each order, fused and
/// plain, with memory used again and not.
inline std::string pass_faults(World& world, const graph::ComputeGraph& recorded,
                               std::vector<backend::PlanData>& plans) {
  Tally& tally = world.tally;
  const backend::DeviceInfo& info = world.device->info();
  const std::span<const backend::Kernel> kernels = fusible_kernels();
  graph::ComputeGraph expanded = recorded;
  graph::expand(expanded, graph::Mode::exact);
  for (const bool fuse : {true, false}) {
    graph::ComputeGraph made = expanded;
    graph::FuseReport fused;
    if (fuse) {
      fused = graph::fuse(made, kernels, info);
      ++tally.recordings;
      tally.recordings_with_fusions += !fused.fusions.empty();
      tally.misses += fused.misses.size();
    }
    const graph::AccessList list = value_accesses(graph::lower(made, kernels, info));
    if (std::string fault = disagreement(list); !fault.empty()) return fault;
    const size_t chain = longest_chain(list, closure(list));
    const graph::Order order = graph::derive_order(list);
    const graph::Reordering leveled = graph::order_by_levels(list, order, graph::access_costs(list));
    if (std::string fault = order_faults(list, leveled.order); !fault.empty()) return fault;
    if (leveled.sections_after != chain) return "groups by levels are not the longest chain";
    tally.groups_recorded += leveled.sections_before;
    tally.groups_levels += leveled.sections_after;
    tally.moved += leveled.moved;

    for (const auto by : {graph::CommandOrder::recorded, graph::CommandOrder::levels}) {
      for (const bool reuse : {true, false}) {
        graph::PlanOptions options;
        options.most_fused_rows = UINT32_MAX;
        options.check = true;
        options.fuse = fuse;
        options.order = by;
        options.reuse_memory = reuse;
        auto [plan, report] = graph::make_plan(graph::ComputeGraph(recorded), kernels, info, options);
        if (report.fusions != fused.fusions) return "the same recording is fused in another way";
        if (report.fused_levels != chain || report.levels != chain) return "levels are not as reported";
        if (std::string fault = plan_faults(world, plan, chain); !fault.empty()) return fault;
        if (std::string fault = FusedPlanFaults(expanded, plan, tally).find(); !fault.empty()) return fault;
        tally.commands += report.commands;
        tally.fences += plan.commands.size() - report.commands;
        tally.conflicts += report.conflicts;
        tally.edges += report.edges;
        plans.push_back(std::move(plan));
      }
    }
  }
  return {};
}

/// An edge of `plan` whose loss the checker does not see.
inline std::string unseen_edge(World& world, const backend::PlanData& plan) {
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    for (uint32_t d = 0; d < plan.commands[i].deps.count; ++d) {
      const uint32_t edge = plan.commands[i].deps.first + d;
      const auto found = graph::check_order(without_edge(plan, edge));
      const bool named = std::ranges::any_of(found, [&](const graph::Unordered& pair) {
        return pair.first == plan.deps[edge] && pair.second == i;
      });
      if (!named) return "the loss of an edge was not seen";
      ++world.tally.edges_removed;
    }
  }
  return {};
}

/// Everything that must hold of a random work, executed in `orders` hostile orders; empty when it does.
inline std::string work_faults(World& world, uint32_t seed, uint32_t commands, uint32_t orders) {
  RandomWork work(world, seed, commands);
  std::mt19937 rng(seed ^ 0x5bd1e995u);
  Tally& tally = world.tally;
  const size_t parts = work.parts.size();
  std::vector<std::vector<backend::PlanData>> plans(parts);
  for (size_t p = 0; p < parts; ++p) {
    if (std::string fault = pass_faults(world, work.parts[p].graph, plans[p]); !fault.empty()) return fault;
    if (std::string fault = unseen_edge(world, plans[p][seed % plans[p].size()]); !fault.empty())
      return fault;
  }

  // Between queues: the summaries say which recordings must wait, exactly as their commands do.
  const auto outside = [](const backend::PlanData& plan) {
    graph::AccessList list = accesses(plan);
    std::erase_if(list.ranges, [](const graph::RangeAccess& range) { return range.memory == 0; });
    return list.ranges;
  };
  std::vector<std::vector<size_t>> waits(parts);
  for (size_t later = 0; later < parts; ++later) {
    for (size_t earlier = 0; earlier < later; ++earlier) {
      bool expected = false;
      for (const auto& a : outside(plans[earlier][0])) {
        for (const auto& b : outside(plans[later][0])) expected = expected || conflict(a, b);
      }
      const bool found =
          graph::conflicts(graph::summarize(plans[earlier][0]), graph::summarize(plans[later][0]));
      if (found != expected) return "a summary is not what the commands touch";
      if (found && work.parts[earlier].queue != work.parts[later].queue) waits[later].push_back(earlier);
    }
  }

  for (uint32_t n = 0; n < orders; ++n) {
    work.reset();
    std::vector<backend::PlanData> run;  // plans outlive their programs
    std::vector<std::unique_ptr<backend::Executable>> programs;
    std::vector<backend::Point> points(parts);
    run.reserve(2 * parts);
    for (size_t p = 0; p < parts; ++p) {
      const backend::PlanData& plan = plans[p][n % plans[p].size()];
      const Hostility hostility = n < 4   ? Hostility::latest_first
                                  : n < 8 ? Hostility::longest_path_last
                                          : Hostility::random;
      const std::vector<uint32_t> order = hostile_order(plan, hostility, rng);
      if (order.size() != plan.commands.size()) return "the edges have a cycle";
      graph::SplitPlan split;
      split.parts.push_back(in_order(plan, order));
      if (rng() % 4 == 0) split = graph::split(split.parts[0], 1 + rng() % 16);
      std::vector<backend::Point> before;
      for (const size_t earlier : waits[p]) before.push_back(points[earlier]);
      tally.waits += before.size();
      for (backend::PlanData& part : split.parts) {
        if (stored_order(part) != closure(accesses(part))) return "a part has another order than it asks for";
        run.push_back(std::move(part));
        const Buffer& arena = world.arenas[work.parts[p].queue];
        backend::ExecutableOptions options;
        options.queue = work.parts[p].queue;
        options.arena = arena.device_view();
        // On any worker as it comes, on random ones, or strictly one by one in this order.
        std::vector<uint32_t> placement(run.back().commands.size());
        if (n % 3 == 1) {
          for (uint32_t& worker : placement) worker = static_cast<uint32_t>(rng() % World::kWorkers);
        }
        if (n % 3 != 0) options.placement = placement;
        programs.push_back(world.backend->prepare(run.back(), options));
        points[p] = world.backend->submit({programs.back().get(), {}, before});
        ++tally.submissions;
      }
    }
    for (const backend::Point& point : points) {
      if (!world.backend->wait(point, std::chrono::seconds(60))) return "a submission does not end";
    }
    if (!work.as_recorded()) return "hostile order " + std::to_string(n) + ": other bits";
    ++tally.executions;
  }
  ++tally.graphs;
  return {};
}

}  // namespace refrain::null_tests
