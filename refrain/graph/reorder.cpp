#include "refrain/graph/reorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "refrain/core/error.h"

namespace refrain::graph {
Reordering reordered(std::vector<uint32_t> order, const AccessList& accesses, const Order& recorded) {
  Reordering result;
  for (uint32_t i = 0; i < order.size(); ++i) result.moved += order[i] > i;
  result.sections_before = count_sections(accesses, recorded);
  const AccessList moved = permuted(accesses, order);
  result.derived = derive_order(moved);
  result.sections_after = count_sections(moved, result.derived);
  result.order = std::move(order);
  return result;
}

size_t count_sections(const AccessList& accesses, const Order& order) {
  size_t sections = 0;
  uint32_t begin = 0;  // of the current section
  bool open = false;
  for (uint32_t i = 0; i < accesses.commands.size(); ++i) {
    if (accesses.commands[i].fence) {
      open = false;
      continue;
    }
    // An edge into the section is a conflict with it. Of two commands of one section no path leads from one to
    // the other, so no edge into the section has been left out as redundant.
    const std::span<const uint32_t> deps = order.deps_of_command(i);
    if (open && (deps.empty() || deps.back() < begin)) continue;
    open = true;
    begin = i;
    ++sections;
  }
  return sections;
}

std::vector<uint64_t> access_costs(const AccessList& accesses) {
  std::vector<uint64_t> costs(accesses.commands.size());
  for (size_t i = 0; i < costs.size(); ++i) {
    for (const RangeAccess& range : accesses.ranges_of(i)) {
      if (range.begin < range.end) costs[i] += range.end - range.begin;
    }
  }
  return costs;
}

AccessList permuted(const AccessList& accesses, std::span<const uint32_t> order) {
  AccessList result;
  result.ranges = accesses.ranges;
  result.commands.reserve(order.size());
  for (const uint32_t command : order) result.commands.push_back(accesses.commands[command]);
  return result;
}

Reordering order_by_levels(const AccessList& accesses, const Order& order, std::span<const uint64_t> costs) {
  const auto count = static_cast<uint32_t>(accesses.commands.size());
  if (costs.size() != count) {
    throw InvalidArgument(fmt::format("[reorder] costs: expected {}, got {}", count, costs.size()));
  }
  const auto cost = [&](uint32_t i) { return std::max<uint64_t>(costs[i], 1); };
  // The costliest chain from a command on. What lies behind a fence adds the same to all before it.
  std::vector<uint64_t> path(count);
  for (uint32_t i = count; i-- > 0;) {
    path[i] += cost(i);
    for (const uint32_t dep : order.deps_of_command(i)) path[dep] = std::max(path[dep], path[i]);
  }

  std::vector<uint32_t> result(count);
  std::iota(result.begin(), result.end(), 0);
  const auto earlier = [&](uint32_t a, uint32_t b) {
    return std::tuple(order.levels[a], path[b], cost(b), a) <
           std::tuple(order.levels[b], path[a], cost(a), b);
  };
  for (uint32_t begin = 0, end = 0; begin < count; begin = end + 1) {
    for (end = begin; end < count && !accesses.commands[end].fence;) ++end;
    std::sort(result.begin() + begin, result.begin() + end, earlier);
  }
  return reordered(std::move(result), accesses, order);
}

}  // namespace refrain::graph
