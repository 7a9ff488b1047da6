// Random streams through all passes, against the checker, the definition of order and a computed oracle. Goes
// on for REFRAIN_FUZZ_SECONDS, and for a moment without that variable.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using std::chrono::steady_clock;

bool campaign() { return std::getenv("REFRAIN_FUZZ_SECONDS") != nullptr; }

/// Calls `step` with a new number until a share of the time is over, and at least `least` times.
template <class Step>
void repeat(double share, uint32_t least, const Step& step) {
  const char* seconds = std::getenv("REFRAIN_FUZZ_SECONDS");
  const double total = seconds != nullptr ? std::strtod(seconds, nullptr) * share : 0;
  const auto end = steady_clock::now() +
                   std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(total));
  uint32_t i = 0;
  for (; i < least || steady_clock::now() < end; ++i) {
    step(i);
    if (testing::Test::HasFatalFailure()) return;
  }
  testing::Test::RecordProperty("cases", std::to_string(i));
}

TEST(RandomGraphs, OrderAgreesWithTheDefinition) {
  std::mt19937 rng(99);
  repeat(0.3, campaign() ? 100000 : 2000, [&](uint32_t i) {
    ASSERT_EQ(disagreement(random_accesses(rng, i % 16 == 0 ? 96 : 24)), "") << "list " << i;
  });
}

TEST(RandomGraphs, AllPassesKeepTheBits) {
  repeat(0.7, campaign() ? 20000 : 300, [&](uint32_t i) {
    const uint32_t seed = 1000000 + i;
    ASSERT_EQ(graph_faults(seed, i % 64 == 0 ? 200 : 8 + i % 48), "") << "seed " << seed;
  });
}

}  // namespace
}  // namespace refrain::null_tests
