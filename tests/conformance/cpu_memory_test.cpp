// A CPU device for which memory runs out while it notes why a submission failed: the process lives on, and
// whoever waits learns of the failure. A program of its own, since it replaces operator new.
#include <gtest/gtest.h>

#include <chrono>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/core/error.h"
#include "tests/conformance/test_kernels.h"
#include "tests/counted_new.h"
#include "tests/eventually.h"

namespace refrain::backend::testing {
namespace {

/// The message with which wait() fails; empty when it does not.
std::string failure(Backend& device, const Point& point) {
  try {
    (void)device.wait(point, std::chrono::seconds(60));
  } catch (const DeviceError& error) {
    return error.what();
  }
  return {};
}

TEST(CpuMemory, AFailureThatCannotBeSaidIsAFailure) {
  if (!test::kCountsHeap) GTEST_SKIP() << "the sanitizer has an operator new of its own";
  uint64_t refused = 0;
  for (uint64_t k = 1;; ++k) {
    CpuOptions options;
    options.threads = 2;
    const auto device = make_cpu(options, test_kernels());
    const Allocation* data = device->allocate({64, "data"});
    PlanBuilder builder;
    builder.add(kThrow, {inout(view(data, 0, 4))}, {.label = "a label that is longer than a short string"});
    const auto first = device->prepare(builder.plan, {.label = "the first program of the test"});
    const auto second = device->prepare(builder.plan, {.queue = 1});
    const Point start{device->id, kHostQueue, 1};
    const Point point = device->submit({first.get(), {}, {&start, 1}});
    const Point after = device->submit({second.get(), {}, {&point, 1}});
    const Point later = device->submit({first.get(), {}, {}});

    const uint64_t number = test::heap_allocations + k;
    test::heap_refusal = number;
    device->signal_host(1);
    test::eventually(
        [&] { return device->completed(1) >= after.value && device->completed(0) >= later.value; });
    test::heap_refusal = 0;
    const bool all = test::heap_allocations < number;  // nothing was left to refuse
    const bool said = failure(*device, point).find("no memory to say why") == std::string::npos;
    EXPECT_TRUE(said || !all);
    refused += !said;
    EXPECT_EQ(failure(*device, point).find("cpu: did not run: "), std::string::npos);
    for (const Point& follows : {after, later})
      EXPECT_EQ(failure(*device, follows).find("cpu: did not run: "), 0u) << failure(*device, follows);
    if (all) break;
  }
  EXPECT_GT(refused, 2u) << "allocations of the text";
}

}  // namespace
}  // namespace refrain::backend::testing
