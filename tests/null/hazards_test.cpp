// The hazard pass against its definition: random access lists, and each rule by hand.
#include "refrain/graph/hazards.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/null/order_oracle.h"

namespace refrain::null_tests {
namespace {

using graph::AccessList;
using graph::Order;
using graph::RangeAccess;

constexpr bool kRead = false, kWrite = true;

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
  const device::Range range = order.deps_of[command];
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
  EXPECT_EQ(order.conflicts, 1u);
}

TEST(Hazards, AFenceFirst) {
  const Order order = graph::derive_order(list_of({{}, {{1, 0, 8, kWrite}}}));
  EXPECT_EQ(order.levels, (Edges{0, 1}));
  EXPECT_EQ(deps(order, 1), Edges{0});
}

}  // namespace
}  // namespace refrain::null_tests
