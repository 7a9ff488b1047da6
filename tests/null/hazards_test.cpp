// The hazard pass against its definition: random access lists, and each rule by hand.
#include "refrain/graph/hazards.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <random>
#include <set>

#include "tests/null/order_oracle.h"

namespace refrain::null_tests {
namespace {

using graph::AccessList;
using graph::Order;
using graph::RangeAccess;

using backend::Effect;

constexpr Effect kRead = Effect::read, kAdd = Effect::accumulate, kWrite = Effect::write;

/// Commands given by their ranges; none at all is a fence.
AccessList list_of(std::initializer_list<std::vector<RangeAccess>> commands) {
  AccessList list;
  for (const auto& ranges : commands) {
    list.commands.push_back(
        {{static_cast<uint32_t>(list.ranges.size()), static_cast<uint32_t>(ranges.size())}, ranges.empty()});
    list.ranges.insert(list.ranges.end(), ranges.begin(), ranges.end());
  }
  return list;
}

std::vector<uint32_t> deps(const Order& order, size_t command) {
  const backend::Range range = order.deps_of[command];
  return {order.deps.begin() + range.first, order.deps.begin() + range.first + range.count};
}

using Edges = std::vector<uint32_t>;

TEST(Hazards, RandomListsAgreeWithTheDefinition) {
  std::mt19937 rng(20240501);
  for (int i = 0; i < 20000; ++i) ASSERT_EQ(disagreement(random_accesses(rng, 24)), "") << "list " << i;
}

TEST(Hazards, LongListsAgreeWithTheDefinition) {
  std::mt19937 rng(7);
  for (int i = 0; i < 40; ++i) ASSERT_EQ(disagreement(random_accesses(rng, 200)), "") << "list " << i;
}

TEST(Hazards, WithoutReductionTheOrderIsTheSame) {
  std::mt19937 rng(11);
  size_t more = 0;
  for (int i = 0; i < 3000; ++i) {
    const AccessList list = random_accesses(rng, 24);
    const Order reduced = graph::derive_order(list), direct = graph::derive_order(list, /*reduced=*/false);
    ASSERT_EQ(direct.levels, reduced.levels) << "list " << i;
    ASSERT_EQ(direct.conflicts, reduced.conflicts) << "list " << i;
    Relation stored(list.commands.size());
    for (size_t c = 0; c < stored.size(); ++c) {
      const Edges edges = deps(direct, c);
      ASSERT_TRUE(std::ranges::adjacent_find(edges, std::greater_equal<>()) == edges.end()) << "list " << i;
      for (const uint32_t dep : edges) stored[c][dep] = true;
    }
    ASSERT_EQ(closure(std::move(stored)), closure(list)) << "list " << i;
    more += direct.deps.size() - reduced.deps.size();
  }
  EXPECT_GT(more, 0u);
}

TEST(Hazards, TheOracleCanDisagree) {
  // A judge that accepts anything proves nothing: its own parts are checked on a chain and a diamond.
  const AccessList diamond = list_of({{{1, 0, 4, kWrite}},
                                      {{1, 0, 4, kRead}, {2, 0, 4, kWrite}},
                                      {{1, 0, 4, kRead}, {3, 0, 4, kWrite}},
                                      {{2, 0, 4, kRead}, {3, 0, 4, kRead}, {1, 0, 4, kWrite}}});
  const Relation before = closure(diamond);
  EXPECT_EQ(reduction(before), (Pairs{{1, 0}, {2, 0}, {3, 1}, {3, 2}}));
  EXPECT_EQ(levels(diamond, before), (Edges{1, 2, 2, 3}));
}

TEST(Hazards, NothingFromNothing) {
  const Order order = graph::derive_order({});
  EXPECT_TRUE(order.deps.empty());
  EXPECT_EQ(order.conflicts, 0u);
}

TEST(Hazards, EachKindOfHazard) {
  struct Case {
    const char* name;
    RangeAccess first, second;
    bool edge;
  };
  const Case cases[] = {
      {"read after write", {1, 0, 8, kWrite}, {1, 0, 8, kRead}, true},
      {"write after read", {1, 0, 8, kRead}, {1, 0, 8, kWrite}, true},
      {"write after write", {1, 0, 8, kWrite}, {1, 0, 8, kWrite}, true},
      {"read after read", {1, 0, 8, kRead}, {1, 0, 8, kRead}, false},
      {"accumulation after accumulation", {1, 0, 8, kAdd}, {1, 0, 8, kAdd}, false},
      {"accumulation after read", {1, 0, 8, kRead}, {1, 0, 8, kAdd}, true},
      {"accumulation after write", {1, 0, 8, kWrite}, {1, 0, 8, kAdd}, true},
      {"read after accumulation", {1, 0, 8, kAdd}, {1, 0, 8, kRead}, true},
      {"write after accumulation", {1, 0, 8, kAdd}, {1, 0, 8, kWrite}, true},
      {"other memory", {1, 0, 8, kWrite}, {2, 0, 8, kWrite}, false},
      {"touching below", {1, 8, 16, kWrite}, {1, 0, 8, kRead}, false},
      {"touching above", {1, 0, 8, kWrite}, {1, 8, 16, kRead}, false},
      {"one byte in common", {1, 0, 9, kWrite}, {1, 8, 16, kRead}, true},
      {"nested inside", {1, 0, 64, kWrite}, {1, 16, 24, kRead}, true},
      {"nested outside", {1, 16, 24, kWrite}, {1, 0, 64, kRead}, true},
      {"an empty range", {1, 0, 64, kWrite}, {1, 16, 16, kWrite}, false},
      {"the end of memory", {1, SIZE_MAX - 8, SIZE_MAX, kWrite}, {1, SIZE_MAX - 1, SIZE_MAX, kRead}, true},
  };
  for (const Case& c : cases) {
    const Order order = graph::derive_order(list_of({{c.first}, {c.second}}));
    EXPECT_EQ(deps(order, 1), c.edge ? Edges{0} : Edges{}) << c.name;
    EXPECT_EQ(order.levels[1], c.edge ? 2u : 1u) << c.name;
    EXPECT_EQ(order.conflicts, c.edge ? 1u : 0u) << c.name;
  }
}

TEST(Hazards, ACommandDoesNotWaitForItself) {
  const Order order = graph::derive_order(
      list_of({{{1, 0, 8, kRead}, {1, 0, 8, kWrite}, {1, 4, 6, kRead}, {1, 2, 12, kWrite}}}));
  EXPECT_TRUE(order.deps.empty());
}

TEST(Hazards, AChainKeepsOnlyItsLinks) {
  // The third writes what the first wrote; the second stands between.
  const Order order =
      graph::derive_order(list_of({{{1, 0, 8, kWrite}}, {{1, 0, 8, kRead}}, {{1, 0, 8, kWrite}}}));
  EXPECT_EQ(deps(order, 2), Edges{1});
  EXPECT_EQ(order.conflicts, 3u);
  EXPECT_TRUE(order.before.reaches(2, 0));
}

TEST(Hazards, AWriterWaitsForEveryReader) {
  const Order order = graph::derive_order(list_of({{{1, 0, 64, kWrite}},
                                                   {{1, 0, 8, kRead}},
                                                   {{1, 0, 8, kRead}},
                                                   {{1, 60, 64, kRead}},
                                                   {{1, 4, 62, kWrite}}}));
  EXPECT_EQ(deps(order, 4), (Edges{1, 2, 3}));
  EXPECT_EQ(order.levels, (Edges{1, 2, 2, 2, 3}));
}

TEST(Hazards, AccumulationsWaitForEveryReaderAndReadersForEveryAccumulation) {
  const std::vector<RangeAccess> read{{1, 0, 8, kRead}}, add{{1, 0, 8, kAdd}};
  const Order order = graph::derive_order(list_of({read, read, add, add, read, read, {{1, 0, 8, kWrite}}}));
  EXPECT_EQ(deps(order, 1), Edges{});
  for (const size_t adder : {2u, 3u}) EXPECT_EQ(deps(order, adder), (Edges{0, 1}));
  for (const size_t reader : {4u, 5u}) EXPECT_EQ(deps(order, reader), (Edges{2, 3}));
  EXPECT_EQ(deps(order, 6), (Edges{4, 5}));
}

TEST(Hazards, AReaderOfManyPiecesWaitsForEachWriter) {
  const Order order = graph::derive_order(list_of({{{1, 0, 8, kWrite}},
                                                   {{1, 8, 16, kWrite}},
                                                   {{1, 24, 32, kWrite}},
                                                   {{1, 4, 12, kWrite}},
                                                   {{1, 0, 32, kRead}}}));
  EXPECT_EQ(deps(order, 3), (Edges{0, 1}));
  EXPECT_EQ(deps(order, 4), (Edges{2, 3}));
}

TEST(Hazards, FencesOrderEverything) {
  const Order order = graph::derive_order(
      list_of({{{1, 0, 8, kRead}}, {{2, 0, 8, kRead}}, {}, {{3, 0, 8, kRead}}, {{4, 0, 8, kRead}}, {}, {}}));
  EXPECT_EQ(deps(order, 2), (Edges{0, 1}));
  EXPECT_EQ(deps(order, 3), Edges{2});
  EXPECT_EQ(deps(order, 4), Edges{2});
  EXPECT_EQ(deps(order, 5), (Edges{3, 4}));
  EXPECT_EQ(deps(order, 6), Edges{5});
  EXPECT_EQ(order.levels, (Edges{1, 1, 1, 2, 2, 2, 2}));
  EXPECT_EQ(order.conflicts, 0u);
  EXPECT_TRUE(order.before.reaches(4, 0));
}

TEST(Hazards, AFenceStandsForTheConflictsAcrossIt) {
  const Order order = graph::derive_order(list_of({{{1, 0, 8, kWrite}}, {}, {{1, 0, 8, kRead}}}));
  EXPECT_EQ(deps(order, 2), Edges{1});
  EXPECT_EQ(order.conflicts, 0u);
  EXPECT_TRUE(order.before.reaches(2, 0));
}

TEST(Hazards, AFenceFirst) {
  const Order order = graph::derive_order(list_of({{}, {{1, 0, 8, kWrite}}}));
  EXPECT_EQ(order.levels, (Edges{0, 1}));
  EXPECT_EQ(deps(order, 1), Edges{0});
}

TEST(Hazards, ManyReadersInPieces) {
  // Readers of the whole, of halves and of a middle: a write to any part waits for those that read that part.
  const Order order = graph::derive_order(list_of({{{1, 0, 64, kRead}},
                                                   {{1, 0, 32, kRead}},
                                                   {{1, 32, 64, kRead}},
                                                   {{1, 16, 48, kRead}},
                                                   {{1, 0, 16, kWrite}},
                                                   {{1, 48, 64, kWrite}},
                                                   {{1, 20, 21, kWrite}},
                                                   {{1, 0, 64, kRead}}}));
  EXPECT_EQ(deps(order, 4), (Edges{0, 1}));
  EXPECT_EQ(deps(order, 5), (Edges{0, 2}));
  EXPECT_EQ(deps(order, 6), (Edges{0, 1, 3}));
  EXPECT_EQ(deps(order, 7), (Edges{4, 5, 6}));
}

std::vector<uint32_t> sorted(std::span<const uint32_t> values) {
  std::vector<uint32_t> result(values.begin(), values.end());
  std::ranges::sort(result);
  return result;
}

/// The direct dependencies of command `i` by their definition: the last writer of each byte that it touches,
/// and the last of those since that commute with each other but not with it; nothing before the last fence.
std::vector<uint32_t> direct(const AccessList& list, uint32_t i) {
  std::set<uint32_t> found;
  std::set<std::pair<uint64_t, size_t>> own;  // bytes that its ranges before have written
  for (const RangeAccess& range : list.ranges_of(i)) {
    for (size_t byte = range.begin; byte < range.end; ++byte) {
      if (own.contains({range.memory, byte})) continue;
      if (range.effect == kWrite) own.insert({range.memory, byte});
      std::optional<Effect> group;
      bool closed = false;
      for (uint32_t j = i; j-- > 0 && !list.commands[j].fence;) {
        std::optional<Effect> effect;
        for (const RangeAccess& other : list.ranges_of(j)) {
          if (other.memory != range.memory || byte < other.begin || byte >= other.end) continue;
          if (effect != kWrite) effect = other.effect;
        }
        if (!effect) continue;
        const bool of_group = *effect != range.effect && group.value_or(*effect) == *effect && !closed;
        if (*effect == kWrite || of_group) found.insert(j);
        if (*effect == kWrite) break;
        if (of_group) group = effect;
        closed = closed || (group && !of_group);
      }
    }
  }
  return {found.begin(), found.end()};
}

TEST(HazardTracker, EachCommandAgreesWithTheDefinition) {
  std::mt19937 rng(31);
  graph::HazardTracker tracker;  // one for all lists: what it keeps of one must not reach the next
  for (int n = 0; n < 3000; ++n) {
    const AccessList list = random_accesses(rng, 24);
    tracker.reset();
    uint32_t fence = backend::kNone;
    for (uint32_t i = 0; i < list.commands.size(); ++i) {
      ASSERT_EQ(tracker.size(), i);
      if (list.commands[i].fence) {
        tracker.add_fence();
        fence = i;
      } else {
        // A dependency that the command's own earlier range has hidden is on the command itself.
        const std::vector<uint32_t> found = sorted(tracker.add(list.ranges_of(i))),
                                    expected = direct(list, i);
        ASSERT_EQ(std::ranges::adjacent_find(found), found.end()) << "list " << n << ", command " << i;
        ASSERT_EQ(found, expected) << "list " << n << ", command " << i;
      }
      ASSERT_EQ(tracker.last_fence(), fence);
    }
  }
}

TEST(HazardTracker, ManyMemories) {
  // More than the first table holds, with ids that are far apart and alike in their low bits.
  graph::HazardTracker tracker;
  for (uint64_t i = 0; i < 1000; ++i) {
    const RangeAccess write{i << 48 | 7, 0, 8, kWrite};
    EXPECT_TRUE(tracker.add(std::span(&write, 1)).empty());
  }
  for (uint32_t i = 0; i < 1000; ++i) {
    const RangeAccess read{uint64_t{i} << 48 | 7, 4, 5, kRead};
    EXPECT_EQ(sorted(tracker.add(std::span(&read, 1))), Edges{i});
  }
}

TEST(HazardTracker, AFenceForgets) {
  graph::HazardTracker tracker;
  const RangeAccess write{1, 0, 8, kWrite}, read{1, 0, 8, kRead};
  tracker.add(std::span(&write, 1));
  tracker.add_fence();
  EXPECT_TRUE(tracker.add(std::span(&read, 1)).empty());
  EXPECT_EQ(tracker.last_fence(), 1u);
  EXPECT_EQ(sorted(tracker.add(std::span(&write, 1))), Edges{2});
  tracker.reset();
  EXPECT_EQ(tracker.size(), 0u);
  EXPECT_EQ(tracker.last_fence(), backend::kNone);
  EXPECT_TRUE(tracker.add(std::span(&write, 1)).empty());
}

}  // namespace
}  // namespace refrain::null_tests
