#include "refrain/graph/check.h"

#include <fmt/format.h>

#include <algorithm>

namespace refrain::graph {
namespace {

using backend::Access;
using backend::Argument;
using backend::CommandKind;
using backend::PlanCommand;
using backend::PlanData;

std::string title(const PlanData& plan, uint32_t index) {
  const PlanCommand& command = plan.commands[index];
  if (command.kind == CommandKind::fence) return fmt::format("#{} fence", index);
  const std::string& label = plan.labels[command.label];
  return fmt::format("#{} {}{}{}", index, backend::title(plan, command), label.empty() ? "" : " ", label);
}

/// Why `a` and `b` conflict; empty when they do not.
std::string conflict(const PlanData& plan, uint32_t a, uint32_t b) {
  const PlanCommand& first = plan.commands[a];
  const PlanCommand& second = plan.commands[b];
  if (first.kind == CommandKind::fence || second.kind == CommandKind::fence) return "a fence lies between";
  for (uint32_t i = 0; i < first.args.count; ++i) {
    const Argument& x = plan.args[first.args.first + i];
    for (uint32_t j = 0; j < second.args.count; ++j) {
      const Argument& y = plan.args[second.args.first + j];
      const bool commute = x.access == Access::in || x.access == Access::accumulate;
      if (commute && x.access == y.access) continue;
      if (x.view.allocation != y.view.allocation) continue;
      const size_t begin = std::max(x.view.offset_bytes, y.view.offset_bytes);
      const size_t end = std::min(x.view.offset_bytes + x.view.bytes, y.view.offset_bytes + y.view.bytes);
      if (begin >= end) continue;
      return fmt::format(
          "{} and {} share bytes [{}, {}) of {}", argument_title(plan, first, i),
          argument_title(plan, second, j), begin, end,
          x.view.allocation == nullptr ? "the arena" : fmt::format("allocation {}", x.view.allocation->id));
    }
  }
  return {};
}

/// All commands that `from` follows, along edges.
std::vector<bool> ancestors(const PlanData& plan, uint32_t from) {
  std::vector<bool> seen(plan.commands.size());
  std::vector<uint32_t> stack{from};
  while (!stack.empty()) {
    const backend::Range deps = plan.commands[stack.back()].deps;
    stack.pop_back();
    for (uint32_t d = deps.first; d < deps.first + deps.count; ++d) {
      if (seen[plan.deps[d]]) continue;
      seen[plan.deps[d]] = true;
      stack.push_back(plan.deps[d]);
    }
  }
  return seen;
}

}  // namespace

std::vector<Unordered> check_order(const PlanData& plan) {
  std::vector<Unordered> found;
  for (uint32_t second = 0; second < plan.commands.size(); ++second) {
    const std::vector<bool> before = ancestors(plan, second);
    for (uint32_t first = 0; first < second; ++first) {
      if (before[first]) continue;
      const std::string reason = conflict(plan, first, second);
      if (reason.empty()) continue;
      found.push_back(
          {first, second,
           fmt::format("{} and {} are not ordered: {}", title(plan, first), title(plan, second), reason)});
    }
  }
  return found;
}

}  // namespace refrain::graph
