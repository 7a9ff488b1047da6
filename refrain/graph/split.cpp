#include "refrain/graph/split.h"

#include <algorithm>

namespace refrain::graph {
namespace {

using backend::CommandKind;
using backend::PlanCommand;
using backend::PlanData;
using backend::Range;

/// Commands [begin, end) of a plan; edges from before `begin` go to `crossing`. All that commands refer to by
/// index stays as it is.
PlanData part(const PlanData& plan, uint32_t begin, uint32_t end,
              std::vector<std::pair<uint32_t, uint32_t>>& crossing) {
  PlanData result = plan;
  result.deps.clear();
  result.commands.assign(plan.commands.begin() + begin, plan.commands.begin() + end);
  for (uint32_t i = begin; i < end; ++i) {
    PlanCommand& command = result.commands[i - begin];
    const Range deps = command.deps;
    command.deps = {static_cast<uint32_t>(result.deps.size()), 0};
    command.level = 0;
    for (uint32_t d = deps.first; d < deps.first + deps.count; ++d) {
      const uint32_t dep = plan.deps[d];
      if (dep < begin) {
        crossing.emplace_back(dep, i);
        continue;
      }
      result.deps.push_back(dep - begin);
      ++command.deps.count;
      command.level = std::max(command.level, result.commands[dep - begin].level);
    }
    command.level += command.kind != CommandKind::fence;
  }
  return result;
}

}  // namespace

SplitPlan split(const PlanData& plan, size_t least) {
  const auto count = static_cast<uint32_t>(plan.commands.size());
  const auto fence = [&](uint32_t i) { return plan.commands[i].kind == CommandKind::fence; };
  size_t total = 0;
  for (uint32_t i = 0; i < count; ++i) total += !fence(i);
  const size_t first = std::max(least, total / 10);
  if (first >= total || first == 0) return {{plan}, {}};

  uint32_t end = 0;  // of the first part
  for (size_t taken = 0; taken < first; ++end) taken += !fence(end);
  uint32_t begin = end;  // of the second
  while (fence(begin)) ++begin;
  SplitPlan result;
  result.parts.push_back(part(plan, 0, end, result.crossing));
  result.parts.push_back(part(plan, begin, count, result.crossing));
  return result;
}

}  // namespace refrain::graph
