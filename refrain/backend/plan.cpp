// The names of a plan's commands, for people: traces, dumps and errors.
#include "refrain/backend/plan.h"

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

std::string title(const PlanData& plan, const PlanCommand& command) {
  if (command.kind == CommandKind::fence) return "fence";
  if (command.kind == CommandKind::kernel) return std::string(command.kernel->name);
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
  const Range& members = plan.groups[command.group].members;
  const uint32_t argument = command.args.first + index;
  for (uint32_t m = members.first; m < members.first + members.count; ++m) {
    const FusedMember& member = plan.members[m];
    if (argument < member.args.first || argument >= member.args.first + member.args.count) continue;
    const OpSchema& op = *member.kernel->op;
    return std::string(op.name) + '.' + std::string(op.args[argument - member.args.first].name);
  }
  return "?";
}

}  // namespace refrain::backend
