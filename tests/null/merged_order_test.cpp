// Commands that become one: allowed exactly when no path leads out and back in, by the definition.
#include "refrain/graph/merged_order.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/null/order_oracle.h"

namespace refrain::null_tests {
namespace {

using backend::kNone;
using graph::MergedOrder;

/// The nodes of a graph in which some commands are one, and who follows whom.
struct Nodes {
  explicit Nodes(const Relation& commands) : before(commands), node(commands.size()) {
    for (uint32_t i = 0; i < node.size(); ++i) node[i] = i;
  }
  /// With all commands of the same node in each other's place.
  Relation together(const std::vector<uint32_t>& of) const {
    Relation relation(before.size());
    for (uint32_t i = 0; i < before.size(); ++i) {
      for (uint32_t j = 0; j < before.size(); ++j) {
        if (before[i][j] && of[i] != of[j]) relation[of[i]][of[j]] = true;
      }
    }
    return closure(std::move(relation));
  }
  std::vector<uint32_t> joined(uint32_t a, uint32_t b) const {
    std::vector<uint32_t> of = node;
    std::ranges::replace(of, std::max(node[a], node[b]), std::min(node[a], node[b]));
    return of;
  }

  const Relation before;
  std::vector<uint32_t> node;  // of each command: the first of its node
};

TEST(MergedOrder, JoinsExactlyWhatMayBeOne) {
  std::mt19937 rng(5);
  size_t done = 0, refused = 0;
  for (int list = 0; list < 1500; ++list) {
    const graph::AccessList accesses = random_accesses(rng, 20);
    const auto count = static_cast<uint32_t>(accesses.commands.size());
    if (count < 2) continue;
    const graph::Order order = graph::derive_order(accesses, /*reduced=*/list % 2 == 0);
    MergedOrder contraction(order);
    Nodes nodes(closure(accesses));
    for (int step = 0; step < 16; ++step) {
      const auto a = static_cast<uint32_t>(rng() % count), b = static_cast<uint32_t>(rng() % count);
      if (nodes.node[a] == nodes.node[b]) continue;
      const std::vector<uint32_t> joined = nodes.joined(a, b);
      const Relation after = nodes.together(joined);
      bool cycle = false;
      for (uint32_t i = 0; i < count; ++i) cycle |= after[i][i];
      const uint32_t between = contraction.join(a, b);
      ASSERT_EQ(between != kNone, cycle) << "list " << list;
      if (cycle) {
        // It follows one and precedes the other.
        const Relation old = nodes.together(nodes.node);
        ASSERT_EQ(nodes.node[between], between);
        const uint32_t x = nodes.node[a], y = nodes.node[b];
        ASSERT_TRUE((old[between][x] && old[y][between]) || (old[between][y] && old[x][between]));
        ++refused;
      } else {
        nodes.node = joined;
        ++done;
      }
      // The sequence has each node once, and in an order that the edges allow.
      const Relation before = nodes.together(nodes.node);
      const std::vector<uint32_t> sequence = contraction.sequence();
      for (uint32_t i = 0; i < sequence.size(); ++i) {
        for (uint32_t j = i; j < sequence.size(); ++j) ASSERT_FALSE(before[sequence[i]][sequence[j]]);
      }
      std::vector<uint32_t> expected = nodes.node, found = sequence;
      std::ranges::sort(expected);
      expected.erase(std::unique(expected.begin(), expected.end()), expected.end());
      std::ranges::sort(found);
      ASSERT_EQ(found, expected);
    }
  }
  EXPECT_GT(done, 1000u);
  EXPECT_GT(refused, 1000u);
}

}  // namespace
}  // namespace refrain::null_tests
