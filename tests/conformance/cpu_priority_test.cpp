// Priorities of the CPU backend's queues: which of the submissions that can run goes first.
#include <gtest/gtest.h>

#include <array>
#include <chrono>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/core/error.h"
#include "refrain/device/device.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

constexpr std::chrono::seconds kLong(60);
using Order = std::vector<uint32_t>;

/// Submissions that each write their queue's number to one log; nothing runs before the host's point 1.
class Priorities : public ::testing::Test {
 protected:
  void open(const std::vector<int32_t>& priorities) {
    CpuOptions options;
    options.threads = 2;
    options.queue_priorities = priorities;
    device_ = make_cpu(options, test_kernels());
    log_ = device_->allocate({256, "log"});
    const Allocation* numbers = device_->allocate({64, "numbers"});
    for (uint32_t q = 0; q < 4; ++q) {
      put(*device_, view(numbers, q * 4, 4), q);
      builders_[q].add(kAppend, {in(view(numbers, q * 4, 4)), inout(view(log_))}, {});
      programs_[q] = device_->prepare(builders_[q].plan, {.queue = q});
    }
  }
  Point host(uint64_t value) const { return {device_->id, kHostQueue, value}; }
  Point submit(uint32_t queue, const Point& after) {
    const Point waits[] = {host(1), after};
    return last_[queue] = device_->submit({programs_[queue].get(), {}, waits});
  }
  Point submit(uint32_t queue) { return submit(queue, host(1)); }
  /// The queues in the order in which their submissions ran.
  Order order() {
    device_->signal_host(1);
    for (const Point& point : last_) {
      if (point.backend == 0) continue;
      EXPECT_TRUE(device_->wait(point, kLong));
    }
    const auto log = contents<uint32_t>(*device_, log_);
    return {log.begin() + 1, log.begin() + 1 + log[0]};
  }

  std::unique_ptr<Backend> device_;
  const Allocation* log_ = nullptr;
  std::array<PlanBuilder, 4> builders_;
  std::array<std::unique_ptr<Executable>, 4> programs_;
  std::array<Point, 4> last_ = {};
};

TEST_F(Priorities, EqualQueuesTakeTurns) {
  open({});
  for (int i = 0; i < 2; ++i) {
    for (uint32_t q = 0; q < 4; ++q) submit(q);
  }
  EXPECT_EQ(order(), (Order{1, 2, 3, 0, 1, 2, 3, 0}));
}

TEST_F(Priorities, HighestFirst) {
  open({-1, 5, -1, 2});
  for (int i = 0; i < 2; ++i) {
    for (uint32_t q = 0; q < 4; ++q) submit(q);
  }
  EXPECT_EQ(order(), (Order{1, 1, 3, 3, 2, 0, 2, 0}));
}

TEST_F(Priorities, ABlockedHeadHoldsNobody) {
  open({0, 9});
  submit(1, host(2));
  submit(0);
  const Point behind = submit(0);
  device_->signal_host(1);
  EXPECT_TRUE(device_->wait(behind, kLong)) << "of lower priority, but it can run";
  submit(0, host(2));
  submit(2, host(2));
  device_->signal_host(2);
  EXPECT_EQ(order(), (Order{0, 0, 1, 2, 0})) << "once it can run, it goes first";
}

TEST_F(Priorities, EqualQueuesTakeTurnsBetweenOthers) {
  open({1});
  const Point first = submit(1), second = submit(2);
  submit(1);
  submit(2);
  submit(0);
  submit(0, first);
  submit(0, second);
  EXPECT_EQ(order(), (Order{0, 1, 0, 2, 0, 1, 2}));
}

TEST_F(Priorities, TooMany) {
  CpuOptions options;
  options.threads = 1;
  options.queue_priorities.resize(5);
  EXPECT_THROW(make_cpu(options, {}), InvalidArgument);
  options.queue_priorities.resize(4);
  EXPECT_NE(make_cpu(options, {}), nullptr);
}

TEST_F(Priorities, OfAnOpenedDevice) {
  DeviceOptions options;
  options.threads = 1;
  for (const char* name : {"cpu", "null"}) {
    options.queue_priorities = {3, -7};
    refrain::Device device = refrain::Device::open(name, options);
    device.wait(device.encoder().commit());
    options.queue_priorities.resize(device.info().queue_count + 1);
    EXPECT_THROW(refrain::Device::open(name, options), InvalidArgument) << name;
  }
}

}  // namespace
}  // namespace refrain::backend::testing
