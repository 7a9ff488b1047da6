#include "refrain/graph/dump.h"

#include <fmt/format.h>

#include <iterator>
#include <map>

#include "refrain/graph/levels.h"

namespace refrain::graph {
namespace {

using backend::Access;
using backend::Argument;
using backend::PlanCommand;
using backend::PlanData;

std::string_view name(Access access) {
  switch (access) {
    case Access::in:
      return "in";
    case Access::out:
      return "out";
    case Access::inout:
      return "inout";
    case Access::accumulate:
      return "accumulate";
  }
  return "?";
}

/// A line for the prologue and one for each component: its units, how many a tile has, its kernels.
void dump_group(const PlanData& plan, const backend::FusedGroup& group, std::string& text) {
  const auto kernels = [&](uint32_t component) {
    for (uint32_t m = group.members.first; m < group.members.first + group.members.count; ++m) {
      const backend::FusedMember& member = plan.members[m];
      if (member.component == component) fmt::format_to(std::back_inserter(text), " {}", member.kernel->name);
    }
    text += '\n';
  };
  if (group.value_row_bytes != 0) {
    text += "       prologue";
    kernels(backend::kNone);
  }
  for (uint32_t c = 0; c < group.components.count; ++c) {
    const backend::FusedComponent& component = plan.components[group.components.first + c];
    fmt::format_to(std::back_inserter(text), "       units {}/{}", component.units, component.units_per_tile);
    kernels(c);
  }
}

}  // namespace

std::string dump(const PlanData& plan) {
  std::string text;
  const auto out = std::back_inserter(text);
  std::map<const backend::Allocation*, size_t> numbers;
  for (size_t i = 0; i < plan.commands.size(); ++i) {
    const PlanCommand& command = plan.commands[i];
    const bool fence = command.kind == backend::CommandKind::fence;
    fmt::format_to(out, "{:>4} level {:<3} {}", i, command.level, backend::title(plan, command));
    if (const std::string& label = plan.labels[command.label]; !label.empty())
      fmt::format_to(out, " {:?}", label);
    if (!fence) {
      const backend::Launch& launch = command.launch;
      fmt::format_to(out, " rows {}/{} x {} tiles", launch.rows, launch.rows_per_block,
                     launch.tiles_per_block);
    }
    fmt::format_to(out, " after");
    for (uint32_t d = 0; d < command.deps.count; ++d)
      fmt::format_to(out, " {}", plan.deps[command.deps.first + d]);
    fmt::format_to(out, "\n");
    if (command.kind == backend::CommandKind::fused_group) dump_group(plan, plan.groups[command.group], text);
    for (uint32_t a = 0; a < command.args.count; ++a) {
      const Argument& arg = plan.args[command.args.first + a];
      const std::string title = backend::argument_title(plan, command, a);
      if (arg.view.bytes == 0) continue;
      fmt::format_to(out, "       {} {}", name(arg.access), title);
      if (arg.view.allocation == nullptr) {
        fmt::format_to(out, " arena");
      } else {
        fmt::format_to(out, " memory {}",
                       numbers.try_emplace(arg.view.allocation, numbers.size()).first->second);
      }
      fmt::format_to(out, " [{}, {}){}\n", arg.view.offset_bytes, arg.view.offset_bytes + arg.view.bytes,
                     arg.sealed ? " sealed" : "");
    }
  }
  for (const LevelWidth& width : level_widths(plan))
    fmt::format_to(out, "width {} levels {}\n", width.commands, width.levels);
  fmt::format_to(out, "arena {} bytes\n", plan.arena_bytes);
  return text;
}

std::string dump(const PlanReport& report) {
  std::string text = fmt::format("recorded_commands {}\nrecorded_levels {}\nfused_levels {}\n",
                                 report.recorded_commands, report.recorded_levels, report.fused_levels);
  for (const std::string& rewrite : report.rewrites) text += "rewrote " + rewrite + '\n';
  for (const std::string& fusion : report.fusions) text += "fused " + fusion + '\n';
  for (const std::string& miss : report.misses) text += "missed " + miss + '\n';
  for (const OpNumerics& row : report.numerics) {
    text += fmt::format("numerics {} of {}: {} by {}{}\n", row.op, row.types, row.numerics, row.kernel,
                        row.elided ? ", elided" : "");
  }
  return text +
         fmt::format(
             "commands {}\nedges {}\nconflicts {}\nlevels {}\nmoved {}\nbarriers_before {}\nbarriers {}\n"
             "temp_bytes {}\nscratch_bytes {}\narena_bytes {}\n",
             report.commands, report.edges, report.conflicts, report.levels, report.moved,
             report.barriers_before, report.barriers, report.temp_bytes, report.scratch_bytes,
             report.arena_bytes);
}

}  // namespace refrain::graph
