// Random streams through all passes, against the checker, the definition of order and a computed oracle.
#include <gtest/gtest.h>

#include <string>

#include "tests/fuzz/random_graphs.h"
#include "tests/fuzz/repeat.h"

namespace refrain::null_tests {
namespace {

TEST(RandomGraphs, OrderAgreesWithTheDefinition) {
  std::mt19937 rng(99 + first_seed());
  repeat(0.2, 2000, [&](uint32_t i) {
    ASSERT_EQ(disagreement(random_accesses(rng, i % 16 == 0 ? 96 : 24)), "") << "list " << i;
  });
}

TEST(RandomGraphs, AllPassesKeepTheBits) {
  repeat(0.2, 300, [&](uint32_t i) {
    const uint32_t seed = first_seed() + 1000000 + i;
    ASSERT_EQ(graph_faults(seed, i % 64 == 0 ? 200 : 8 + i % 48), "") << "seed " << seed;
  });
}

TEST(RandomGraphs, AnyOrderOnTheCpuKeepsTheBits) {
  World world;
  repeat(0.6, 200, [&](uint32_t i) {
    const uint32_t seed = first_seed() + 2000000 + i;
    ASSERT_EQ(work_faults(world, seed, i % 64 == 0 ? 160 : 8 + i % 40, 24), "") << "seed " << seed;
  });
  const Tally& tally = world.tally;
  // The campaign is worth something only if it has met what it is about.
  EXPECT_GT(tally.waits, 0u);
  EXPECT_GT(tally.fences, 0u);
  EXPECT_GT(tally.submissions, tally.executions);
  EXPECT_LT(tally.groups_levels, tally.groups_recorded);
  EXPECT_EQ(tally.levels, tally.longest_chains);
  EXPECT_EQ(tally.executions, 24 * tally.graphs);
  // Half of all recordings have a group, and half of the groups share tiles; many have a prologue.
  EXPECT_GT(2 * tally.recordings_with_fusions, tally.recordings);
  EXPECT_GT(2 * tally.shared_tiles, tally.fusions);
  EXPECT_GT(8 * tally.prologues, tally.fusions);
  EXPECT_GT(tally.misses, tally.recordings);
  const std::pair<const char*, uint64_t> figures[] = {
      {"graphs", tally.graphs},
      {"plans", tally.plans},
      {"commands", tally.commands},
      {"fences", tally.fences},
      {"conflicts", tally.conflicts},
      {"edges", tally.edges},
      {"levels", tally.levels},
      {"longest_chains", tally.longest_chains},
      {"groups_recorded", tally.groups_recorded},
      {"groups_levels", tally.groups_levels},
      {"moved", tally.moved},
      {"edges_removed", tally.edges_removed},
      {"executions", tally.executions},
      {"submissions", tally.submissions},
      {"waits", tally.waits},
      {"recordings", tally.recordings},
      {"recordings_with_fusions", tally.recordings_with_fusions},
      {"fusions", tally.fusions},
      {"members", tally.members},
      {"prologues", tally.prologues},
      {"shared_tiles", tally.shared_tiles},
      {"misses", tally.misses},
  };
  report(figures);
}

}  // namespace
}  // namespace refrain::null_tests
