#include "refrain/graph/memory.h"

#include <algorithm>
#include <numeric>

#include "refrain/core/checked.h"

namespace refrain::graph {
namespace {

constexpr size_t kAlignment = 64;

/// True when all of `users` are ordered before `command`.
bool all_before(const std::vector<uint32_t>& users, uint32_t command, const Reachability& before) {
  return std::ranges::all_of(users, [&](uint32_t user) { return before.reaches(command, user); });
}

}  // namespace

MemoryPlan plan_memory(const LoweredGraph& graph, const Order& order, bool reuse) {
  const size_t count = graph.temp_bytes.size();
  std::vector<std::vector<uint32_t>> users(count);  // ascending; the first one writes the value
  for (uint32_t i = 0; i < graph.commands.size(); ++i) {
    const device::Range& args = graph.commands[i].args;
    for (uint32_t a = args.first; a < args.first + args.count; ++a) {
      const uint32_t temp = graph.args[a].temp;
      if (temp != kNone && (users[temp].empty() || users[temp].back() != i)) users[temp].push_back(i);
    }
  }

  std::vector<uint32_t> by_size(count);
  std::iota(by_size.begin(), by_size.end(), 0);
  std::ranges::stable_sort(by_size, std::greater<>(), [&](uint32_t t) { return graph.temp_bytes[t]; });

  MemoryPlan plan;
  plan.offsets_bytes.resize(count);
  std::vector<uint32_t> placed;  // by offset
  for (const uint32_t temp : by_size) {
    if (users[temp].empty()) continue;
    const size_t bytes = align_up(graph.temp_bytes[temp], kAlignment);
    size_t offset = 0;
    for (const uint32_t other : placed) {
      // All users of a value come after its first one, so the first stands for all.
      const bool apart = reuse && (all_before(users[other], users[temp].front(), order.before) ||
                                   all_before(users[temp], users[other].front(), order.before));
      if (apart) continue;
      if (plan.offsets_bytes[other] >= offset + bytes) break;
      offset = std::max(offset, plan.offsets_bytes[other] + align_up(graph.temp_bytes[other], kAlignment));
    }
    plan.offsets_bytes[temp] = offset;
    plan.arena_bytes = std::max(plan.arena_bytes, offset + bytes);
    placed.insert(
        std::ranges::upper_bound(placed, offset, {}, [&](uint32_t t) { return plan.offsets_bytes[t]; }),
        temp);
  }
  return plan;
}

}  // namespace refrain::graph
