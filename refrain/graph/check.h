// An independent judge of a Plan: every conflicting pair of commands must be ordered by its edges. Written
// from the definition, by brute force, and sharing no code with hazards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::graph {

/// Two commands that touch the same bytes, one of them writing, with no path of edges between them; or a
/// command and a fence with none.
struct Unordered {
  uint32_t first = 0;
  uint32_t second = 0;
  std::string reason;  ///< names both commands, their arguments and the bytes
};

/// All unordered pairs of a plan; none for a correct one. O(commands^2).
std::vector<Unordered> check_order(const backend::PlanData& plan);

}  // namespace refrain::graph
