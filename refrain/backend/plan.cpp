// The names of a plan's commands, for people: traces, dumps and errors.
#include "refrain/backend/plan.h"

#include <optional>

#include "refrain/core/checked.h"

namespace refrain::backend {

std::string joined(const std::vector<std::string_view>& names) {
  std::string text;
  for (size_t i = 0; i < names.size();) {
    size_t same = 1;
    while (i + same < names.size() && names[i + same] == names[i]) ++same;
    if (!text.empty()) text += '+';
    text += names[i];
    if (same > 1) text += '*' + std::to_string(same);
    i += same;
  }
  return text;
}

size_t scratch_bytes(const Launch& launch, const DeviceInfo& info) {
  const size_t walkers = launch.walkers != 0 ? launch.walkers : info.compute_units;
  // What is too large for a number is more than any memory, not less.
  const std::optional<size_t> scratch = checked_mul(launch.scratch_bytes, walkers);
  return (scratch ? checked_add(*scratch, launch.workspace_bytes) : scratch).value_or(SIZE_MAX);
}

std::string title(const PlanData& plan, const PlanCommand& command) {
  if (command.kind == CommandKind::fence) return "fence";
  if (command.kind == CommandKind::kernel) return std::string(command.kernel->name);
  if (command.kind == CommandKind::group_kernel) return std::string(command.group_kernel->name);
  std::vector<std::string_view> names;
  const Range& members = plan.groups[command.group].members;
  for (uint32_t m = members.first; m < members.first + members.count; ++m)
    names.push_back(plan.members[m].kernel->op->name);
  return joined(names);
}

std::string argument_title(const PlanData& plan, const PlanCommand& command, uint32_t index) {
  if (index == command.live_arg) return "live rows";
  if (index == command.scratch_arg) return "scratch";
  if (command.kind == CommandKind::kernel) return std::string(command.kernel->op->args[index].name);
  const uint32_t argument = command.args.first + index;
  const auto find = [&](const OpSchema& op, const Range& args) -> std::string {
    if (argument < args.first || argument >= args.first + args.count) return {};
    return std::string(op.name) + '.' + std::string(op.args[argument - args.first].name);
  };
  const Range members =
      command.kind == CommandKind::group_kernel ? command.placed : plan.groups[command.group].members;
  for (uint32_t m = members.first; m < members.first + members.count; ++m) {
    const bool placed = command.kind == CommandKind::group_kernel;
    const std::string found = placed ? find(*plan.placed[m].op, plan.placed[m].args)
                                     : find(*plan.members[m].kernel->op, plan.members[m].args);
    if (!found.empty()) return found;
  }
  return "?";
}

}  // namespace refrain::backend
