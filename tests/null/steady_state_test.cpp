// Steady state allocates nothing: operator new of this program counts, so it is a program of its own.
#include <gtest/gtest.h>

#include "tests/counted_new.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

class SteadyState : public testing::Test {
 protected:
  SteadyState() {
    CommandEncoder encoder = device_.encoder();
    const Temp t = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(t)}, MixConstants{1, 16, 0, 16});
    dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(a_)}, MixConstants{1, 16, 0, 16});
    program_ = device_.prepare(device_.plan(encoder.finish()).first);
  }

  static constexpr uint64_t kRounds = 100000;  // so that a list that only grows shows itself

  /// Heap allocations of kRounds of submit, wait and a look at the result with `updates` updates, after
  /// a first one.
  uint64_t allocations(size_t updates) {
    const uint32_t value = 1;
    std::vector<Update> list(updates, {a_.slice(0, 1), std::as_bytes(std::span(&value, 1))});
    device_.wait(device_.submit(program_, list));
    const uint64_t before = test::heap_allocations.load();
    for (uint64_t i = 0; i < kRounds; ++i) {
      device_.wait(device_.submit(program_, list));
      sum_ += a_.span<const uint32_t>()[0];
    }
    return test::heap_allocations.load() - before;
  }

  Device device_ = null_device();
  Buffer a_ = device_.buffer(DType::u32, {16});
  Program program_;
  uint64_t sum_ = 0;
};

TEST_F(SteadyState, SubmitAllocatesNothing) {
  if (!test::kCountsHeap) GTEST_SKIP();
  EXPECT_EQ(allocations(0), 0u);
}
TEST_F(SteadyState, NorDoesAnUpdate) {
  if (!test::kCountsHeap) GTEST_SKIP();
  EXPECT_EQ(allocations(1), 0u);
}
TEST_F(SteadyState, NorDoEight) {
  if (!test::kCountsHeap) GTEST_SKIP();
  EXPECT_EQ(allocations(8), 0u);
}
TEST_F(SteadyState, NineDo) {
  if (!test::kCountsHeap) GTEST_SKIP();
  EXPECT_EQ(allocations(9), kRounds) << "and so the counter counts";
}

TEST_F(SteadyState, NothingIsRecordedOrPlanned) {
  const Counters before = device_.counters();
  allocations(1);
  const Counters after = device_.counters();
  EXPECT_EQ(after.dispatches_recorded, before.dispatches_recorded);
  EXPECT_EQ(after.plans, before.plans);
  EXPECT_EQ(after.programs_prepared, before.programs_prepared);
  EXPECT_EQ(after.allocations, before.allocations);
  EXPECT_EQ(after.submissions - before.submissions, kRounds + 1);
}

}  // namespace
}  // namespace refrain::null_tests
