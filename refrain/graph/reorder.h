// Pass: another order of the same commands, one that the derived order allows. Decides nothing but the order;
// the hazard pass derives levels and edges of it again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "refrain/graph/hazards.h"

namespace refrain::graph {

/// A permutation of commands and what it gains. A section is neighbouring commands without a conflict among them:
/// one more section than the barriers that a device needs which knows no edges and walks the commands in order.
struct Reordering {
  std::vector<uint32_t> order;  ///< order[i]: the command that comes i-th
  size_t moved = 0;             ///< commands that come earlier than before
  size_t sections_before = 0;
  size_t sections_after = 0;
  Order derived;  ///< of the commands in this order
};

/// Level by level, so that sections become levels, the least there can be. Within a level: the longest critical
/// path first (the sum of costs along it), then the greatest cost, then recorded order.
/// Nothing crosses a fence. `costs`: one a command, in any one unit; a cost of 0 counts as 1. O(n log n).
/// Throws InvalidArgument when the number of costs is not that of the commands.
Reordering order_by_levels(const AccessList& accesses, const Order& order, std::span<const uint64_t> costs);

/// What an order gains. `order`: any that `recorded`, the order of `accesses`, allows.
Reordering reordered(std::vector<uint32_t> order, const AccessList& accesses, const Order& recorded);

/// Bytes that each command touches: its cost when nothing better is known, as most commands are bound by
/// memory.
std::vector<uint64_t> access_costs(const AccessList& accesses);

/// The list with its commands in another order; ranges stay where they are.
AccessList permuted(const AccessList& accesses, std::span<const uint32_t> order);

/// Sections: neighbouring commands without a conflict among them, in this order; fences end one and are none.
size_t count_sections(const AccessList& accesses, const Order& order);

}  // namespace refrain::graph
