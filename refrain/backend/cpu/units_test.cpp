// Runs of cheap commands against the graph that they are made of: random graphs, and each rule by itself.
#include "refrain/backend/cpu/units.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace refrain::backend::cpu {
namespace {

struct Graph {
  std::vector<Work> commands;
  std::vector<uint32_t> deps;

  uint32_t add(uint32_t ns, const std::vector<uint32_t>& own) {
    commands.push_back({ns, static_cast<uint32_t>(deps.size()), static_cast<uint32_t>(own.size())});
    deps.insert(deps.end(), own.begin(), own.end());
    return static_cast<uint32_t>(commands.size()) - 1;
  }
  /// Of each unit: how many commands.
  std::vector<uint32_t> counts() const {
    std::vector<uint32_t> result;
    for (const Unit& unit : make_units(commands, deps).all) result.push_back(unit.count);
    return result;
  }
};

using Counts = std::vector<uint32_t>;
using Matrix = std::vector<std::vector<bool>>;

/// before[i][j]: j comes before i; rows are given in an order in which deps stand before.
void imply(Matrix& before, uint32_t i, uint32_t dep) {
  before[i][dep] = true;
  for (uint32_t k = 0; k < dep; ++k) {
    if (before[dep][k]) before[i][k] = true;
  }
}

TEST(Units, RandomGraphs) {
  std::mt19937 random(1);
  size_t runs = 0;
  for (int round = 0; round < 400; ++round) {
    Graph graph;
    const uint32_t count = 1 + random() % 60, window = 1 + random() % 12, alone_of_ten = random() % 8;
    for (uint32_t i = 0; i < count; ++i) {
      std::vector<uint32_t> deps;
      for (uint32_t k = random() % 4; k > 0 && i > 0; --k)
        deps.push_back(i - 1 - static_cast<uint32_t>(random() % std::min(i, window)));
      std::sort(deps.begin(), deps.end());
      deps.erase(std::unique(deps.begin(), deps.end()), deps.end());
      graph.add(random() % 10 < alone_of_ten ? Work::kAlone : static_cast<uint32_t>(random() % kMemberNs),
                deps);
    }
    const Units units = make_units(graph.commands, graph.deps);
    Matrix before(count, std::vector<bool>(count, false));
    for (uint32_t i = 0; i < count; ++i) {
      for (uint32_t k = 0; k < graph.commands[i].dep_count; ++k)
        imply(before, i, graph.deps[graph.commands[i].dep_first + k]);
    }
    const auto unit_count = static_cast<uint32_t>(units.all.size());
    Matrix unit_before(unit_count, std::vector<bool>(unit_count, false));
    std::vector<uint32_t> unit_of(count);
    uint32_t next = 0;
    for (uint32_t u = 0; u < unit_count; ++u) {
      const Unit& unit = units.all[u];
      ASSERT_EQ(unit.first, next);
      ASSERT_GE(unit.count, 1u);
      next += unit.count;
      runs += unit.count > 1;
      for (uint32_t i = unit.first; i < next; ++i) unit_of[i] = u;
      for (uint32_t k = 0; k < unit.dep_count; ++k) {
        const uint32_t dep = units.deps[unit.dep_first + k];
        ASSERT_LT(dep, u) << "or a worker would wait for what nobody has come to";
        imply(unit_before, u, dep);
      }
    }
    ASSERT_EQ(next, count);
    const auto heavy = [&](uint32_t i) { return graph.commands[i].ns == Work::kAlone; };
    const auto in_run = [&](uint32_t i) { return units.all[unit_of[i]].count > 1; };
    for (uint32_t i = 0; i < count; ++i) {
      if (in_run(i)) {
        ASSERT_FALSE(heavy(i));
      }
      for (uint32_t j = 0; j < i; ++j) {
        if (unit_of[i] == unit_of[j]) continue;
        if (before[i][j]) {
          ASSERT_TRUE(unit_before[unit_of[i]][unit_of[j]]) << i << " after " << j;
        }
        if (heavy(i) && heavy(j)) {
          ASSERT_EQ(unit_before[unit_of[i]][unit_of[j]], before[i][j])
              << i << " after " << j << ": an order for nothing";
        }
      }
    }
  }
  EXPECT_GT(runs, 500u);
}

TEST(Units, CheapNeighboursJoin) {
  Graph graph;
  for (uint32_t i = 0; i < 5; ++i) graph.add(10, i == 0 ? Counts{} : Counts{i - 1});
  EXPECT_EQ(graph.counts(), Counts{5});
  graph.add(Work::kAlone, {4});
  graph.add(10, {5});
  graph.add(10, {5});
  EXPECT_EQ(graph.counts(), (Counts{5, 1, 2}));
}

TEST(Units, RunsAreShort) {
  Graph graph;
  for (uint32_t i = 0; i < 30; ++i) graph.add(100, {});
  EXPECT_EQ(graph.counts(), (Counts{10, 10, 10})) << "so that several workers have something";
  Graph free;
  for (uint32_t i = 0; i < 5000; ++i) free.add(0, {});
  EXPECT_GT(free.counts().size(), 1u);
  Graph dear;
  for (uint32_t i = 0; i < 3; ++i) dear.add(kMemberNs + 1, {});
  EXPECT_EQ(dear.counts(), (Counts{1, 1, 1}));
}

TEST(Units, FencesStandAlone) {
  Graph graph;
  graph.add(10, {});
  graph.add(10, {});
  graph.add(Work::kFence, {0, 1});
  graph.add(10, {});
  graph.add(10, {});
  EXPECT_EQ(graph.counts(), (Counts{2, 0, 2}));
  EXPECT_EQ(make_units(graph.commands, graph.deps).all[1].dep_count, 1u);
}

TEST(Units, HeavyCommandsStayApart) {
  // Two branches: each heavy command waits for the cheap one of its own branch.
  Graph graph;
  const uint32_t a = graph.add(Work::kAlone, {}), b = graph.add(Work::kAlone, {});
  const uint32_t c = graph.add(10, {a}), d = graph.add(10, {b});
  graph.add(Work::kAlone, {c});
  graph.add(Work::kAlone, {d});
  EXPECT_EQ(graph.counts(), (Counts{1, 1, 1, 1, 1, 1})) << "one run would put both ends behind both begins";
}

TEST(Units, WhatIsWaitedForHasNoOrder) {
  Graph graph;
  const uint32_t a = graph.add(Work::kAlone, {}), b = graph.add(Work::kAlone, {});
  std::vector<uint32_t> all;
  for (int i = 0; i < 6; ++i) {
    all.push_back(graph.add(10, {b}));
    all.push_back(graph.add(10, {a}));
  }
  graph.add(10, {a, b});
  graph.add(10, {all[0], all[1]});  // of b, then of a
  graph.add(10, all);               // of two, by many ways
  const Counts counts = graph.counts();
  EXPECT_EQ(counts.size(), 2 + all.size() + 1);
  EXPECT_EQ(counts.back(), 3u);
}

TEST(Units, WhoWaitsForManyStaysAlone) {
  Graph graph;
  std::vector<uint32_t> all;
  for (int i = 0; i < 100; ++i) all.push_back(graph.add(Work::kAlone, {}));
  const uint32_t sum = graph.add(10, all);
  graph.add(10, {sum});
  graph.add(10, {sum});
  const Counts counts = graph.counts();
  ASSERT_EQ(counts.size(), 102u);
  EXPECT_EQ(counts.back(), 2u);
}

}  // namespace
}  // namespace refrain::backend::cpu
