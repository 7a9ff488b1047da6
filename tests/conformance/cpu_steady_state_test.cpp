// A CPU device that submits what it has prepared allocates nothing: operator new of this program counts, so
// it is a program of its own.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>

#include "refrain/backend/cpu/cpu_backend.h"
#include "tests/conformance/test_kernels.h"

#if defined(__has_feature)
#define REFRAIN_HAS_FEATURE(x) __has_feature(x)
#else
#define REFRAIN_HAS_FEATURE(x) 0
#endif

namespace {
std::atomic<uint64_t> news{0};
}

// The sanitizers bring an operator new of their own; there, nothing is counted.
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
#endif

namespace refrain::backend::testing {
namespace {

class CpuSteadyState : public ::testing::TestWithParam<uint32_t> {};

TEST_P(CpuSteadyState, AllocatesNothing) {
  if (!kCounts) GTEST_SKIP() << "the sanitizer has an operator new of its own";
  CpuOptions options;
  options.threads = GetParam();
  const auto device = make_cpu(options, test_kernels());
  const Allocation* data = device->allocate({64, "data"});
  const Allocation* live = device->allocate({64, "live"});
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(data, 0, 32))},
              {.launch = {8, 1, 1, 0}, .constants = {1, 0, 0, 0}, .live = in(view(live, 0, 4))});
  builder.add(kIncrement, {inout(view(data, 0, 32))}, {.launch = {8, 1, 1, 0}, .constants = {1, 0, 0, 0}});
  builder.derive_deps();
  const auto first = device->prepare(builder.plan, {.timestamps = true});
  const auto second = device->prepare(builder.plan, {.queue = 1});
  const uint32_t rows = 8;
  const UpdateData update{view(live, 0, 4), std::as_bytes(std::span(&rows, 1))};
  constexpr int kAhead = 12;  // a queue's ring begins with room for 16
  Point last;
  const auto round = [&] {
    for (int i = 0; i < kAhead; ++i) {
      const Point point = i == 0 && last.backend == 0
                              ? device->submit({first.get(), {&update, 1}, {}})
                              : device->submit({first.get(), {&update, 1}, {&last, 1}});
      last = device->submit({second.get(), {}, {&point, 1}});
    }
    EXPECT_TRUE(device->wait(last, std::chrono::seconds(60)));
  };
  // Entries of a ring keep the capacity that they once had; after these rounds each has been used.
  for (int i = 0; i < 4; ++i) round();
  const uint64_t before = news.load();
  for (int i = 0; i < 100; ++i) round();
  EXPECT_EQ(news.load() - before, 0u);
  EXPECT_EQ(contents<uint32_t>(*device, data)[0], 104u * kAhead * 2 * 2);
  const uint64_t counted_before = news.load();
  device->release(device->allocate({64, "one more"}));
  EXPECT_GT(news.load(), counted_before) << "and so the counter counts";
}

INSTANTIATE_TEST_SUITE_P(Threads, CpuSteadyState, ::testing::Values(1u, 2u));

}  // namespace
}  // namespace refrain::backend::testing
