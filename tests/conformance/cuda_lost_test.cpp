// A GPU that is lost in the middle of work: a program of its own, since the process cannot use the GPU afterwards.
#include <gtest/gtest.h>

#include "refrain/core/error.h"
#include "refrain/device/device.h"
#include "tests/conformance/cuda_device.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

constexpr auto kLong = std::chrono::seconds(60);

template <class Call>
std::string lost_by(Call call) {
  try {
    call();
  } catch (const DeviceLost& error) {
    return error.what();
  }
  return "not lost";
}

TEST(CudaLost, EverythingFailsAndTheProcessGoesOn) {
  if (cuda_under_test().empty()) GTEST_SKIP() << "REFRAIN_TEST_DEVICE names no GPU";
  std::unique_ptr<Backend> device = cuda_device();
  const Allocation* data = device->allocate({1024, "data"});
  PlanBuilder good, bad;
  good.add(kIncrement, {inout(view(data))}, {.launch = {8, 1, 1}});
  bad.add(kThrow, {inout(view(data))}, {.launch = {8, 1, 1}, .constants = {3, 1000, 0, 0}});
  const auto before = device->prepare(good.plan, {.label = "before"});
  const auto fails = device->prepare(bad.plan, {.label = "fails"});
  const auto other = device->prepare(good.plan, {.queue = 1, .label = "other"});
  ASSERT_TRUE(device->wait(device->submit({before.get(), {}, {}}), kLong));
  const Point never{device->id, kHostQueue, 1};
  const Point failed = device->submit({fails.get(), {}, {}});
  const Point behind = device->submit({before.get(), {}, {}});
  const Point held = device->submit({other.get(), {}, {&never, 1}});

  const std::string message = lost_by([&] { device->wait(failed, kLong); });
  EXPECT_NE(message.find("lost"), std::string::npos) << message;
  EXPECT_NE(message.find("under way: submission 2 of queue 0 'fails'"), std::string::npos) << message;
  for (const Point& point : {failed, behind, held}) {
    EXPECT_EQ(lost_by([&] { device->wait(point, kLong); }), message);
  }
  EXPECT_EQ(device->completed(0), 3u);
  EXPECT_EQ(device->completed(1), 1u);
  EXPECT_EQ(lost_by([&] { device->allocate({64, "more"}); }), message);
  EXPECT_EQ(lost_by([&] { device->memory(); }), message);
  std::vector<std::byte> bytes(1024);
  EXPECT_EQ(lost_by([&] { device->write(view(data), bytes); }), message);
  EXPECT_EQ(lost_by([&] { device->read(view(data), bytes); }), message);
  EXPECT_EQ(lost_by([&] { device->prepare(good.plan, {}); }), message);
  EXPECT_EQ(lost_by([&] { device->submit({before.get(), {}, {}}); }), message);
  device->signal_host(1);
  EXPECT_EQ(device->completed(kHostQueue), 0u);
  device->end_host();
  device->recover(0);
  device->release(data);
}

}  // namespace
}  // namespace refrain::backend::testing
