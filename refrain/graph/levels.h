// How wide the levels of a plan are: what could run at once, were there workers enough.
#pragma once

#include <cstddef>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::graph {

struct LevelWidth {
  size_t commands = 0;  ///< of such a level, fences excluded
  size_t levels = 0;    ///< as wide as that

  bool operator==(const LevelWidth&) const = default;
};

/// The widths that occur, ascending, each with the number of its levels; none are merged.
std::vector<LevelWidth> level_widths(const backend::PlanData& plan);

}  // namespace refrain::graph
