// Steady state allocates nothing: operator new of this program counts, so it is a program of its own.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/null/random_graph.h"

#if defined(__has_feature)
#define REFRAIN_HAS_FEATURE(x) __has_feature(x)
#else
#define REFRAIN_HAS_FEATURE(x) 0
#endif

namespace {
std::atomic<uint64_t> news{0};
}

// The sanitizers bring an operator new of their own; there, the tests that count are skipped.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    REFRAIN_HAS_FEATURE(address_sanitizer) || REFRAIN_HAS_FEATURE(thread_sanitizer)
constexpr bool kCounts = false;
#else
constexpr bool kCounts = true;

static void* counted(size_t bytes) {
  news.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
#endif

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
    const uint64_t before = news.load();
    for (int i = 0; i < 1000; ++i) device_.wait(device_.submit(program_, list));
    return news.load() - before;
  }

  Device device_ = null_device();
  Buffer a_ = device_.buffer(DType::u32, {16});
  Program program_;
};

TEST_F(SteadyState, SubmitAllocatesNothing) {
  if (!kCounts) GTEST_SKIP();
  EXPECT_EQ(allocations(0), 0u);
}
TEST_F(SteadyState, NorDoesAnUpdate) {
  if (!kCounts) GTEST_SKIP();
  EXPECT_EQ(allocations(1), 0u);
}
TEST_F(SteadyState, NorDoEight) {
  if (!kCounts) GTEST_SKIP();
  EXPECT_EQ(allocations(8), 0u);
}
TEST_F(SteadyState, NineDo) {
  if (!kCounts) GTEST_SKIP();
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
