#include "refrain/graph/levels.h"

#include <map>

namespace refrain::graph {

std::vector<LevelWidth> level_widths(const backend::PlanData& plan) {
  std::map<uint32_t, size_t> commands_of;  // by level
  for (const backend::PlanCommand& command : plan.commands) {
    if (command.kind != backend::CommandKind::fence) ++commands_of[command.level];
  }
  std::map<size_t, size_t> levels_of;  // by width
  for (const auto& [level, commands] : commands_of) ++levels_of[commands];
  std::vector<LevelWidth> widths;
  for (const auto& [commands, levels] : levels_of) widths.push_back({commands, levels});
  return widths;
}

}  // namespace refrain::graph
