// Reordering: every order is one that the definition allows, levels give the fewest groups that there can be,
// and the look-ahead takes what its description says.
#include "refrain/graph/reorder.h"

#include <gtest/gtest.h>

#include <numeric>
#include <tuple>

#include "bench/lookahead.h"
#include "refrain/core/error.h"
#include "tests/null/random_graph.h"
#include "tests/null/reordered_plan.h"

namespace refrain::null_tests {
namespace {

using graph::AccessList;
using graph::Order;
using graph::RangeAccess;
using graph::Reordering;
using Indices = std::vector<uint32_t>;

/// Commands that read and write whole memories; none at all is a fence.
struct Touches {
  std::vector<uint64_t> reads, writes;
};

AccessList list_of(const std::vector<Touches>& commands) {
  AccessList list;
  for (const Touches& command : commands) {
    const auto first = static_cast<uint32_t>(list.ranges.size());
    for (const uint64_t memory : command.reads) list.ranges.push_back({memory, 0, 1});
    for (const uint64_t memory : command.writes)
      list.ranges.push_back({memory, 0, 1, backend::Effect::write});
    const auto count = static_cast<uint32_t>(list.ranges.size()) - first;
    list.commands.push_back({{first, count}, count == 0});
  }
  return list;
}

Reordering by_levels(const AccessList& list, std::vector<uint64_t> costs = {}) {
  if (costs.empty()) costs = graph::access_costs(list);
  return graph::order_by_levels(list, graph::derive_order(list), costs);
}

/// Groups by their definition: a command that conflicts with one of the group begins the next.
size_t groups(const AccessList& list, std::span<const uint32_t> order) {
  size_t count = 0;
  Indices group;
  for (const uint32_t command : order) {
    if (list.commands[command].fence) {
      group.clear();
      continue;
    }
    const bool apart =
        std::ranges::any_of(group, [&](uint32_t other) { return conflict(list, other, command); });
    if (apart) group.clear();
    count += group.empty();
    group.push_back(command);
  }
  return count;
}

Indices identity(size_t count) {
  Indices order(count);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

/// The look-ahead by its description, on the relation of conflicts: commands wait in a queue in recorded
/// order.
Indices lookahead(const AccessList& list) {
  Indices waiting = identity(list.commands.size()), order, group;
  const auto apart = [&](const Indices& others, uint32_t command) {
    return std::ranges::none_of(others, [&](uint32_t other) { return conflict(list, other, command); });
  };
  while (!waiting.empty()) {
    const uint32_t next = waiting.front();
    if (!apart(group, next)) {
      Indices passed{next}, left;
      bool stopped = list.commands[next].fence;
      for (const uint32_t other : waiting) {
        stopped = stopped || other > next + 63 || list.commands[other].fence;
        if (other != next && !stopped && apart(group, other) && apart(passed, other)) {
          group.push_back(other);
          order.push_back(other);
        } else {
          passed.push_back(other);
          left.push_back(other);
        }
      }
      waiting = left;
      group.clear();
    }
    order.push_back(next);
    waiting.erase(waiting.begin());
    group = list.commands[next].fence ? Indices{} : group;
    if (!list.commands[next].fence) group.push_back(next);
  }
  return order;
}

void expect_sound(const AccessList& list, const Reordering& found) {
  ASSERT_EQ(order_faults(list, found.order), "");
  size_t moved = 0;
  for (uint32_t i = 0; i < found.order.size(); ++i) {
    const auto at = std::ranges::find(found.order, i) - found.order.begin();
    moved += static_cast<uint32_t>(at) < i;
  }
  ASSERT_EQ(found.moved, moved);
  ASSERT_EQ(found.sections_before, groups(list, identity(list.commands.size())));
  ASSERT_EQ(found.sections_after, groups(list, found.order));
}

/// By levels, nothing is left open: level, then the longest path from a command on, then its cost, then where it
/// was recorded.
void expect_no_tie(const AccessList& list, const std::vector<uint64_t>& costs, const Indices& order) {
  const Relation before = closure(list);
  const std::vector<uint32_t> level = levels(list, before);
  std::vector<uint64_t> path(order.size());
  const auto cost = [&](size_t i) { return std::max<uint64_t>(costs[i], 1); };
  for (size_t i = order.size(); i-- > 0;) {
    for (size_t j = i + 1; j < order.size(); ++j) {
      if (before[j][i]) path[i] = std::max(path[i], path[j]);
    }
    path[i] += cost(i);
  }
  for (size_t at = 1; at < order.size(); ++at) {
    const uint32_t a = order[at - 1], b = order[at];
    if (list.commands[a].fence || list.commands[b].fence) continue;
    ASSERT_LT(std::tuple(level[a], path[b], cost(b), a), std::tuple(level[b], path[a], cost(a), b));
  }
}

TEST(Reorder, RandomListsKeepTheirOrder) {
  std::mt19937 rng(17);
  size_t before = 0, greedy = 0, least = 0;
  for (int i = 0; i < 3000; ++i) {
    const AccessList list = random_accesses(rng, i % 8 == 0 ? 150 : 24);
    const Order order = graph::derive_order(list);
    std::vector<uint64_t> costs(list.commands.size());
    for (uint64_t& cost : costs) cost = rng() % 5;
    const Reordering leveled = graph::order_by_levels(list, order, costs);
    ASSERT_NO_FATAL_FAILURE(expect_sound(list, leveled)) << "list " << i;
    ASSERT_NO_FATAL_FAILURE(expect_no_tie(list, costs, leveled.order)) << "list " << i;
    const Reordering greedily = bench::order_by_lookahead(list);
    ASSERT_NO_FATAL_FAILURE(expect_sound(list, greedily)) << "list " << i;
    ASSERT_EQ(greedily.order, lookahead(list)) << "list " << i;

    // A group has no two commands of one chain: the longest chain is the least number of groups.
    const std::vector<uint32_t> longest = levels(list, closure(list));
    const size_t chain = longest.empty() ? 0 : *std::ranges::max_element(longest);
    ASSERT_EQ(leveled.sections_after, chain) << "list " << i;
    ASSERT_GE(greedily.sections_after, chain) << "list " << i;
    before += leveled.sections_before;
    greedy += greedily.sections_after;
    least += chain;
    // Levels do not depend on the order that they were derived from.
    const AccessList again = graph::permuted(list, leveled.order);
    const Order derived = graph::derive_order(again);
    for (uint32_t k = 0; k < again.commands.size(); ++k)
      ASSERT_EQ(derived.levels[k], order.levels[leveled.order[k]]);
  }
  EXPECT_LT(greedy, before);
  EXPECT_LE(least, greedy);
}

TEST(Reorder, RandomGraphsKeepTheirBits) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 rng(seed);
    Device device = null_device();
    RandomGraph random(device, 7000 + seed, 40);
    graph::ComputeGraph recorded = random.finish();
    graph::expand(recorded, graph::Mode::exact);
    const graph::LoweredGraph lowered = graph::lower(recorded, kKernels, device.info());
    const AccessList list = value_accesses(lowered);
    for (const Reordering& reordering : {by_levels(list), bench::order_by_lookahead(list)}) {
      const backend::PlanData plan = planned(lowered, reordering.order);
      ASSERT_TRUE(graph::check_order(plan).empty()) << "seed " << seed;
      for (const Indices& order :
           {identity(plan.commands.size()), hostile_order(plan, Hostility::latest_first, rng)}) {
        std::vector<std::byte> arena(plan.arena_bytes + 64, std::byte{0xEE});
        const auto address = reinterpret_cast<uintptr_t>(arena.data());
        random.reset();
        run_plan(plan, order, arena.data() + (64 - address % 64) % 64);
        ASSERT_TRUE(random.as_recorded()) << "seed " << seed;
      }
    }
  }
}

TEST(Reorder, LongestPathFirstThenCost) {
  // Five commands of level 1; the first begins a chain of two short ones, the second a single long one.
  const AccessList list =
      list_of({{{}, {1}}, {{}, {2}}, {{}, {3}}, {{}, {4}}, {{}, {5}}, {{1}, {6}}, {{6}, {7}}, {{2}, {8}}});
  EXPECT_EQ(by_levels(list, {1, 1, 5, 2, 5, 1, 1, 9}).order, (Indices{1, 2, 4, 0, 3, 7, 5, 6}));
  // Equal paths: the greater cost first. 0 and its follower cost 5, as 1 does alone.
  const AccessList pair = list_of({{{}, {1}}, {{}, {2}}, {{1}, {3}}});
  EXPECT_EQ(by_levels(pair, {2, 5, 3}).order, (Indices{1, 0, 2}));
  // Equal in everything: recorded order.
  EXPECT_EQ(by_levels(pair, {2, 5, 3}).moved, 1u);
  EXPECT_EQ(by_levels(list_of({{{}, {1}}, {{}, {2}}, {{}, {3}}}), {0, 1, 1}).order, (Indices{0, 1, 2}));
}

TEST(Reorder, APathEndsAtAFence) {
  // Without the fence, the first would begin the longest path.
  const AccessList list = list_of({{{}, {1}}, {{}, {2}}, {}, {{1}, {3}}, {{3}, {4}}});
  EXPECT_EQ(by_levels(list, {1, 2, 1, 9, 9}).order, (Indices{1, 0, 2, 3, 4}));
}

TEST(Reorder, NothingCrossesAFence) {
  const AccessList list = list_of({{{}, {1}}, {{1}, {2}}, {}, {{}, {3}}, {}, {}, {{6}, {4}}, {{2}, {5}}});
  for (const Reordering& found : {by_levels(list), bench::order_by_lookahead(list)}) {
    EXPECT_EQ(found.order, identity(8));
    EXPECT_EQ(found.moved, 0u);
    EXPECT_EQ(found.sections_after, 4u);
  }
}

TEST(Reorder, TheLookaheadExaminesSixtyThree) {
  // Command 1 conflicts with 0; a free one follows `apart` positions behind it, after readers of 1's result.
  const auto far = [&](uint32_t apart) {
    std::vector<Touches> commands{{{}, {1}}, {{1}, {2}}};
    for (uint32_t i = 1; i < apart; ++i) commands.push_back({{2}, {100 + i}});
    commands.push_back({{}, {3}});
    return bench::order_by_lookahead(list_of(commands));
  };
  EXPECT_EQ(far(1).order, (Indices{0, 2, 1}));
  EXPECT_EQ(far(63).order[1], 64u);
  EXPECT_EQ(far(63).moved, 1u);
  EXPECT_EQ(far(64).order[1], 1u);
}

TEST(Reorder, LevelsSeeFurtherThanTheLookahead) {
  // Two independent chains, one recorded after the other.
  std::vector<Touches> commands;
  for (const uint64_t memory : {1, 2}) {
    for (int i = 0; i < 100; ++i) commands.push_back({{}, {memory}});
  }
  const AccessList list = list_of(commands);
  EXPECT_EQ(by_levels(list).sections_before, 199u);  // where the chains meet, one group holds both
  EXPECT_EQ(by_levels(list).sections_after, 100u);
  EXPECT_EQ(by_levels(list).moved, 99u);
  EXPECT_GT(bench::order_by_lookahead(list).sections_after, 100u);
}

TEST(Reorder, TheLookaheadKeepsWhatIsPassedBy) {
  // 2 waits for 1, which waits for 0; 3 overwrites what 2 reads; 4 is free.
  const AccessList list = list_of({{{}, {1}}, {{1}, {2}}, {{2, 3}, {4}}, {{}, {3}}, {{}, {5}}});
  const Reordering found = bench::order_by_lookahead(list);
  EXPECT_EQ(found.order, (Indices{0, 4, 1, 2, 3}));
  EXPECT_EQ(found.moved, 1u);
  EXPECT_EQ(found.sections_before, 4u);
  EXPECT_EQ(found.sections_after, 4u);
}

TEST(Reorder, AsManyCostsAsCommands) {
  const AccessList list = list_of({{{}, {1}}, {{}, {2}}});
  try {
    by_levels(list, {1, 2, 3});
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "[reorder] costs: expected 2, got 3");
  }
}

TEST(Reorder, CostsAreBytes) {
  AccessList list = list_of({{{1}, {2}}, {}, {{1}, {}}});
  list.ranges[0].end = 100;
  EXPECT_EQ(graph::access_costs(list), (std::vector<uint64_t>{101, 0, 1}));
}

TEST(Reorder, Nothing) {
  EXPECT_TRUE(by_levels({}).order.empty());
  EXPECT_TRUE(bench::order_by_lookahead({}).order.empty());
}

}  // namespace
}  // namespace refrain::null_tests
