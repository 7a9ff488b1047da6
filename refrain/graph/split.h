// Pass: one plan as two, so that the first can run while the second is still being prepared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::graph {

/// Fewer commands than this are not worth a submission of their own.
inline constexpr size_t kLeastFirstCommands = 64;

struct SplitPlan {
  /// Two plans, or the whole as one when it has no more commands than the first would get. They share the
  /// arena (the same offsets and arena_bytes) and are submitted to one queue, in order and each time both.
  std::vector<backend::PlanData> parts;
  /// Edges (earlier, later) from the first part to the second, as commands of the whole: not stored in either
  /// part, met by the order of submission alone.
  std::vector<std::pair<uint32_t, uint32_t>> crossing;
};

/// The first max(`least`, a tenth of all) commands, fences not counted, and the rest. Each part is a plan by
/// itself, with levels counted anew. Fences between the last command of the first part and the first command
/// of the second are left out, as submissions of one queue are such a fence. O(n).
SplitPlan split(const backend::PlanData& plan, size_t least = kLeastFirstCommands);

}  // namespace refrain::graph
