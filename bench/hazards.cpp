// What the hazard pass costs: whole orders, transitive reduction included, over lists of 1,000 commands with
// 8 ranges each, and of more. A line `name value unit` for each, with what the pass found in that time: its
// time follows the dependencies that the ranges ask for, of which views that cut each other have most.
#include "refrain/graph/hazards.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace {

using refrain::backend::Effect;
using refrain::graph::AccessList;
using refrain::graph::RangeAccess;

constexpr uint32_t kRanges = 8;

Effect effect(bool write) { return write ? Effect::write : Effect::read; }

/// Median and least time of derive_order.
void measure(const char* name, const AccessList& list) {
  const size_t commands = list.commands.size();
  std::vector<double> times;
  refrain::graph::Order order;
  for (int i = 0; i < (commands == 1000 ? 1001 : 51); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    order = refrain::graph::derive_order(list);
    const auto end = std::chrono::steady_clock::now();
    times.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
  }
  std::ranges::sort(times);
  std::printf("hazards_%s_%zu %.1f us\n", name, commands, times[times.size() / 2]);
  std::printf("# least %.1f us; %zu dependencies, %zu edges\n", times[0], order.conflicts, order.deps.size());
}

void add(AccessList& list, const std::vector<RangeAccess>& ranges) {
  list.commands.push_back(
      {{static_cast<uint32_t>(list.ranges.size()), static_cast<uint32_t>(ranges.size())}, false});
  list.ranges.insert(list.ranges.end(), ranges.begin(), ranges.end());
}

/// The shape of a model: 7 reads (weights of a file that all commands share, recent values of an arena, a
/// cache, the step block) and one write to a value of the arena, whose slots are used again.
AccessList model(uint32_t commands) {
  AccessList list;
  for (uint32_t i = 0; i < commands; ++i) {
    const auto slot = [&](uint32_t back, Effect effect) {
      const size_t at = (i + 24 - back) % 24 * 4096;
      return RangeAccess{0, at, at + 4096, effect};
    };
    const size_t cache = size_t{i / 16} * 65536;
    add(list, {slot(1, Effect::read),
               slot(2 + i % 3, Effect::read),
               {1, size_t{i} * 1024, size_t{i} * 1024 + 1024, Effect::read},
               {1, size_t{i} * 1024 + 512, size_t{i} * 1024 + 1024, Effect::read},
               {2, cache, cache + 65536, effect(i % 16 == 3)},
               {3, 0, 16, Effect::read},
               {3, 16, 4096, Effect::read},
               slot(0, Effect::write)});
  }
  return list;
}

/// Each range is the whole of one of `memories`; one of the eight is written.
AccessList buffers(uint32_t commands, uint32_t memories) {
  std::mt19937 rng(5);
  AccessList list;
  for (uint32_t i = 0; i < commands; ++i) {
    std::vector<RangeAccess> ranges;
    for (uint32_t r = 0; r < kRanges; ++r) ranges.push_back({1 + rng() % memories, 0, 4096, effect(r == 0)});
    add(list, ranges);
  }
  return list;
}

/// Ranges of up to 16 units at any of 1,024 places of 4 memories, a quarter of them written: everything cuts
/// everything.
AccessList views(uint32_t commands) {
  std::mt19937 rng(6);
  AccessList list;
  for (uint32_t i = 0; i < commands; ++i) {
    std::vector<RangeAccess> ranges;
    for (uint32_t r = 0; r < kRanges; ++r) {
      const size_t begin = rng() % 1024;
      ranges.push_back({1 + rng() % 4, begin, begin + 1 + rng() % 16, effect(rng() % 4 == 0)});
    }
    add(list, ranges);
  }
  return list;
}

/// Each command reads what the last one wrote.
AccessList chain(uint32_t commands) {
  AccessList list;
  for (uint32_t i = 0; i < commands; ++i) {
    std::vector<RangeAccess> ranges;
    for (uint32_t r = 0; r < kRanges; ++r)
      ranges.push_back({1, r * 64, r * 64 + 64, effect((r + i) % 2 == 0)});
    add(list, ranges);
  }
  return list;
}

}  // namespace

int main() {
  for (const uint32_t commands : {1000u, 4000u, 16000u}) {
    measure("model", model(commands));
    measure("buffers", buffers(commands, commands / 4));
    measure("views", views(commands));
    measure("chain", chain(commands));
  }
}
