// Pass: gives the values of a recording and the scratch of its kernels offsets in one arena.
#pragma once

#include <cstddef>
#include <vector>

#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"

namespace refrain::graph {

struct MemoryPlan {
  std::vector<size_t> offsets_bytes;  ///< of each temp, aligned to 64
  size_t arena_bytes = 0;
};

/// Two temps share bytes only when every user of the one is already ordered before every user of the other,
/// so that sharing adds no edge. Greedy, largest first, at the lowest offset that fits.
MemoryPlan plan_memory(const LoweredGraph& graph, const Order& order, bool reuse);

}  // namespace refrain::graph
