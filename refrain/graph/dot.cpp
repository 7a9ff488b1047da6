#include "refrain/graph/dot.h"

#include <fmt/format.h>

#include <iterator>
#include <map>
#include <string_view>
#include <vector>

namespace refrain::graph {
namespace {

using backend::CommandKind;
using backend::PlanCommand;
using backend::PlanData;

/// As part of a quoted string.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '\n') {
      result += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

}  // namespace

std::string dump_dot(const PlanData& plan) {
  std::string text = "digraph plan {\n  node [shape=box, fontname=\"monospace\"];\n";
  const auto out = std::back_inserter(text);
  std::map<uint32_t, std::vector<uint32_t>> levels;
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const PlanCommand& command = plan.commands[i];
    const bool fence = command.kind == CommandKind::fence;
    fmt::format_to(out, "  c{} [label=\"{} {}", i, i, escaped(backend::title(plan, command)));
    if (command.label < plan.labels.size() && !plan.labels[command.label].empty()) {
      fmt::format_to(out, "\\n{}", escaped(plan.labels[command.label]));
    }
    fmt::format_to(out, "\"{}];\n", fence ? ", shape=underline, width=4" : "");
    if (!fence) levels[command.level].push_back(i);
  }
  for (const auto& [level, commands] : levels) {
    fmt::format_to(out, "  {{ rank=same;");
    for (const uint32_t i : commands) fmt::format_to(out, " c{};", i);
    fmt::format_to(out, " }}  // level {}\n", level);
  }
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const backend::Range deps = plan.commands[i].deps;
    for (uint32_t d = 0; d < deps.count; ++d) {
      fmt::format_to(out, "  c{} -> c{};\n", plan.deps[deps.first + d], i);
    }
  }
  text += "}\n";
  return text;
}

}  // namespace refrain::graph
