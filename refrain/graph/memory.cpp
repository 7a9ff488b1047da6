#include "refrain/graph/memory.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <utility>

#include "refrain/core/checked.h"

namespace refrain::graph {
namespace {

constexpr size_t kAlignment = 64;

// Places that a temp is refused before it goes behind all others, so that planning a wide graph takes no longer
// for each of its temps; and those that all temps together may be refused in any case: graphs of up to 2,048
// temps, which models are, share memory as if there were no limit.
constexpr size_t kMostTries = 256;
constexpr size_t kMostTriesTogether = size_t{1} << 22;

/// True when all of `users` are ordered before `command`.
bool all_before(const std::vector<uint32_t>& users, uint32_t command, const Reachability& before) {
  return std::ranges::all_of(users, [&](uint32_t user) { return before.reaches(command, user); });
}

}  // namespace

MemoryPlan plan_memory(const LoweredGraph& graph, const Order& order, bool reuse) {
  const size_t count = graph.temp_bytes.size();
  std::vector<std::vector<uint32_t>> users(count);  // ascending; the first one writes the value
  for (uint32_t i = 0; i < graph.commands.size(); ++i) {
    const backend::Range& args = graph.commands[i].args;
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
  // Temps at the same bytes are all apart, so they follow each other: by their first users, which stand for all
  // as all users of a value come after its first one.
  std::map<std::pair<size_t, size_t>, std::vector<uint32_t>> cells;  // by offset and bytes
  const auto first_user = [&](uint32_t temp) { return users[temp].front(); };
  const auto apart = [&](const std::vector<uint32_t>& cell, uint32_t temp) {
    const auto next = std::ranges::upper_bound(cell, first_user(temp), {}, first_user);
    return (next == cell.begin() || all_before(users[*std::prev(next)], first_user(temp), order.before)) &&
           (next == cell.end() || all_before(users[temp], first_user(*next), order.before));
  };
  const size_t most_tries = std::max(kMostTries, kMostTriesTogether / std::max<size_t>(count, 1));
  for (const uint32_t temp : by_size) {
    if (users[temp].empty()) continue;
    const size_t bytes = align_up(graph.temp_bytes[temp], kAlignment);
    size_t offset = reuse ? 0 : plan.arena_bytes;
    if (reuse) {
      size_t tries = 0;
      for (const auto& [place, cell] : cells) {
        if (place.first >= offset + bytes) break;
        if (apart(cell, temp)) continue;
        offset = std::max(offset, place.first + place.second);
        if (++tries == most_tries) {
          offset = plan.arena_bytes;
          break;
        }
      }
    }
    plan.offsets_bytes[temp] = offset;
    plan.arena_bytes = std::max(plan.arena_bytes, offset + bytes);
    std::vector<uint32_t>& cell = cells[{offset, bytes}];
    cell.insert(std::ranges::upper_bound(cell, first_user(temp), {}, first_user), temp);
  }
  return plan;
}

}  // namespace refrain::graph
