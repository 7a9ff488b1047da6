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

  /// Heap allocations of 1,000 rounds of submit and wait with `updates` updates, after a first one.
  uint64_t allocations(size_t updates) {
    const uint32_t value = 1;
    std::vector<Update> list(updates, {a_.slice(0, 1), std::as_bytes(std::span(&value, 1))});
    device_.wait(device_.submit(program_, list));
    const uint64_t before = test::heap_allocations.load();
    for (int i = 0; i < 1000; ++i) device_.wait(device_.submit(program_, list));
    return test::heap_allocations.load() - before;
  }

  Device device_ = null_device();
  Buffer a_ = device_.buffer(DType::u32, {16});
  Program program_;
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
  EXPECT_EQ(allocations(9), 1000u) << "and so the counter counts";
}

TEST_F(SteadyState, NothingIsRecordedOrPlanned) {
  const Counters before = device_.counters();
  allocations(1);
  const Counters after = device_.counters();
  EXPECT_EQ(after.dispatches_recorded, before.dispatches_recorded);
  EXPECT_EQ(after.plans, before.plans);
  EXPECT_EQ(after.programs_prepared, before.programs_prepared);
  EXPECT_EQ(after.allocations, before.allocations);
  EXPECT_EQ(after.submissions - before.submissions, 1001u);
}

}  // namespace
}  // namespace refrain::null_tests
