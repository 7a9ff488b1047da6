// Functions called when a point has been reached: when, on which thread, with which error; what they may do.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <future>
#include <thread>

#include "tests/eventually.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

std::string text_of(const std::exception_ptr& error) {
  if (error == nullptr) return "reached";
  try {
    std::rethrow_exception(error);
  } catch (const DeviceLost& lost) {
    return std::string("lost: ") + lost.what();
  } catch (const DeviceError& refused) {
    return std::string("failed: ") + refused.what();
  }
}

/// What functions were called with, in their order.
class Calls {
 public:
  std::function<void(std::exception_ptr)> note(const std::string& name) {
    return [this, name](const std::exception_ptr& error) { add(name + " " + text_of(error)); };
  }
  void add(std::string text) {
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(text));
    changed_.notify_all();
  }
  std::vector<std::string> wait(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, std::chrono::system_clock::now() + 60s, [&] { return calls_.size() >= count; });
    return calls_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> calls_;
};

using Texts = std::vector<std::string>;

class WhenReached : public testing::Test {
 protected:
  static Program program(Device& device, uint32_t queue = 0) {
    const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
    CommandEncoder encoder = device.encoder();
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{1, 16, 0, 16});
    return device.prepare(device.plan(encoder.finish("step")).first, {.queue = queue, .arena = {}});
  }
  void until_waiting(size_t count) {
    test::eventually([&] { return backend_->waiters() == count; });
  }

  Calls calls_;
  std::shared_ptr<ControlledBackend> backend_ = std::make_shared<ControlledBackend>(kKernels);
};

TEST_F(WhenReached, EachIsCalledOnceAfterItsPoint) {
  Device device(backend_, {}, {});
  const Program made = program(device), other = program(device, 1);
  const Point first = device.submit(made), second = device.submit(made), third = device.submit(made);
  const Point elsewhere = device.submit(other);
  device.when_reached(third, calls_.note("third"));
  until_waiting(1);
  device.when_reached(second, calls_.note("second"));  // earlier than what is pending
  device.when_reached(elsewhere, calls_.note("elsewhere"));
  until_waiting(2);
  backend_->complete(0, first.value);
  device.when_reached(first, calls_.note("first"));  // reached already, while others of its queue are pending
  EXPECT_EQ(calls_.wait(1), (Texts{"first reached"}));
  backend_->complete(0, second.value);
  EXPECT_EQ(calls_.wait(2).back(), "second reached");
  backend_->complete(1, elsewhere.value);
  EXPECT_EQ(calls_.wait(3).back(), "elsewhere reached");
  backend_->complete(0, third.value);
  EXPECT_EQ(calls_.wait(4).back(), "third reached");
  device.when_reached(second, calls_.note("again"));
  EXPECT_EQ(calls_.wait(5).back(), "again reached");
}

TEST_F(WhenReached, PointsOfTheHost) {
  Device device(backend_, {}, {});
  const Point first = device.host_point(), second = device.host_point(), third = device.host_point();
  device.when_reached(second, calls_.note("second"));
  device.when_reached(third, calls_.note("third"));
  device.signal(first);
  device.when_reached(first, calls_.note("first"));
  EXPECT_EQ(calls_.wait(1), (Texts{"first reached"}));
  device.signal(third);
  EXPECT_EQ(calls_.wait(3), (Texts{"first reached", "second reached", "third reached"}));
}

TEST_F(WhenReached, TheFailureIsTheOneThatWaitThrows) {
  Device device(backend_, {}, {});
  const Program made = program(device);
  const Point first = device.submit(made), second = device.submit(made);
  device.when_reached(first, calls_.note("first"));
  device.when_reached(second, calls_.note("second"));
  until_waiting(1);
  backend_->fail(0, second.value);
  EXPECT_EQ(calls_.wait(2),
            (Texts{"first reached",
                   "second failed: [submission] 'step', 2 of queue 0: controlled: submission failed"}));
  EXPECT_EQ(device.counters().failures, 1u);
}

TEST_F(WhenReached, ALostDeviceCallsAllOfThem) {
  Device device(backend_, {}, {});
  const Program made = program(device);
  const Point point = device.submit(made), host = device.host_point();
  device.when_reached(point, calls_.note("point"));
  device.when_reached(host, calls_.note("host"));
  backend_->lose();
  Texts texts = calls_.wait(2);
  std::ranges::sort(texts);
  EXPECT_EQ(texts, (Texts{"host lost: controlled: lost", "point lost: controlled: lost"}));
  EXPECT_THROW(device.when_reached(host, calls_.note("late")), DeviceLost);
}

TEST_F(WhenReached, AClosedDeviceCallsAllOfThem) {
  {
    Device device(backend_, {}, {});
    const Point host = device.host_point();
    const Point point = device.submit(program(device), {}, std::array{host});
    device.when_reached(host, calls_.note("host"));
    device.when_reached(point, calls_.note("point"));
    until_waiting(1);
  }
  // Before the device was gone. What waits for the host fails when nobody is left to signal.
  EXPECT_EQ(calls_.wait(0),
            (Texts{"point failed: [submission] 'step', 1 of queue 0: controlled: submission failed",
                   "host failed: [when_reached] the device was closed before host point 1 was signalled"}));
}

TEST_F(WhenReached, WhatOneThrowsIsToldToTheLog) {
  Calls log;
  DeviceOptions options;
  options.log = [&](LogLevel, std::string_view message) { log.add(std::string(message)); };
  Device device(backend_, {}, options);
  const Point host = device.host_point();
  device.when_reached(host, [](const std::exception_ptr&) { throw InvalidArgument("[mine] no"); });
  device.when_reached(host, [](const std::exception_ptr&) { throw 3; });
  device.when_reached(host, calls_.note("next"));
  device.signal(host);
  EXPECT_EQ(calls_.wait(1), (Texts{"next reached"}));
  EXPECT_EQ(log.wait(2), (Texts{"[when_reached] a function threw: [mine] no",
                                "[when_reached] a function threw: something that is no std::exception"}));
}

TEST_F(WhenReached, OneMaySubmitMoreAndAddAnother) {
  Device device = null_device();
  const Program made = program(device);
  std::promise<std::thread::id> last;
  std::function<void(std::exception_ptr)> next;
  uint32_t left = 100;
  next = [&](const std::exception_ptr& error) {
    EXPECT_EQ(error, nullptr);
    if (--left == 0) return last.set_value(std::this_thread::get_id());
    device.when_reached(device.submit(made), next);
  };
  device.when_reached(device.submit(made), next);
  std::future<std::thread::id> caller = last.get_future();
  ASSERT_EQ(caller.wait_for(20s), std::future_status::ready);
  EXPECT_NE(caller.get(), std::this_thread::get_id());
  EXPECT_EQ(device.counters().submissions, 100u);
}

TEST_F(WhenReached, OneMayDropTheLastHandle) {
  const std::weak_ptr<ControlledBackend> watched = backend_;
  auto handle = std::make_shared<Device>(std::move(backend_), std::span<const backend::WeightLayout>(),
                                         DeviceOptions());
  Device& device = *handle;
  const Point host = device.host_point(), never = device.host_point();
  const Point point = device.submit(program(device));
  std::promise<void> dropped;
  device.when_reached(never, calls_.note("never"));
  device.when_reached(point, calls_.note("point"));
  device.when_reached(
      host, [this, handle, others = dropped.get_future().share()](const std::exception_ptr&) mutable {
        others.wait();
        handle.reset();
        calls_.add("dropped");
      });
  device.when_reached(host, calls_.note("second"));
  device.signal(host);
  handle.reset();
  dropped.set_value();
  EXPECT_EQ(calls_.wait(4),
            (Texts{"dropped", "second reached", "point reached",
                   "never failed: [when_reached] the device was closed before host point 2 was signalled"}));
  test::eventually([&] { return watched.expired(); });
}

// The call may be the one that holds the last handle, whoever else lets go before it: the device goes then, on the
// thread of the call.
TEST_F(WhenReached, TheLastHandleInTheCall) {
  for (int i = 0; i < 200; ++i) {
    const auto backend = std::make_shared<ControlledBackend>(kKernels);
    std::atomic<uint32_t> calls{0}, reached{0};
    std::atomic<bool> alone{false};
    {
      Device device(backend, {}, {});
      const Buffer buffer = device.buffer(DType::u32, {16});
      const Point host = device.host_point();
      device.when_reached(host, [&, device, buffer, host](const std::exception_ptr& error) mutable {
        ++calls;
        // A device of which this is the last handle is whole.
        reached += error == nullptr && device.info().backend == "controlled" && device.reached(host);
        if (i % 2 == 0) test::eventually([&] { return alone.load(); });
      });
      device.signal(host);
    }
    alone = true;
    // Of the backend nothing holds a share any more but this test.
    ASSERT_TRUE(test::eventually([&] { return backend.use_count() == 1; })) << i;
    EXPECT_EQ(calls, 1u);
    EXPECT_EQ(reached, 1u);
    EXPECT_EQ(backend->live_allocations(), 0u);
  }
}

TEST_F(WhenReached, ThreadsAddWhileWorkCompletes) {
  Device device(backend_, {}, {});
  const Program programs[] = {program(device, 0), program(device, 1)};
  constexpr uint64_t kEach = 200;
  std::atomic<uint64_t> called{0};
  std::vector<std::thread> threads;
  for (uint32_t queue = 0; queue < 2; ++queue) {
    threads.emplace_back([&, queue] {
      for (uint64_t i = 1; i <= kEach; ++i) {
        const Point point = device.submit(programs[queue]);
        device.when_reached(point, [&](const std::exception_ptr& error) { called += error == nullptr; });
        device.when_reached(device.host_point(), [&](const std::exception_ptr&) { ++called; });
      }
    });
    threads.emplace_back([&, queue] {
      for (uint64_t i = 1; i <= kEach; ++i) {
        test::eventually([&] { return device.counters().submissions >= i; });
        backend_->complete(queue, i / 2);
      }
      test::eventually([&] { return device.counters().submissions == 2 * kEach; });
      backend_->complete(queue, kEach);
      device.signal(device.host_point());
    });
  }
  for (std::thread& thread : threads) thread.join();
  device.signal(device.host_point());
  test::eventually([&] { return called == 4 * kEach; });
}

TEST_F(WhenReached, Misuse) {
  Device device(backend_, {}, {});
  const Point point = device.submit(program(device));
  const auto refusal = [&](Device& on, const Point& at, std::function<void(std::exception_ptr)> function) {
    try {
      on.when_reached(at, std::move(function));
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  Device other = null_device();
  EXPECT_EQ(refusal(device, point, nullptr), "[when_reached] function: expected one, got none");
  EXPECT_EQ(refusal(other, point, calls_.note("x")),
            "[when_reached] point: expected one of this device, got another's");
  EXPECT_EQ(refusal(device, {point.backend, 0, 2}, calls_.note("x")),
            "[when_reached] point: expected one that submit or host_point returned, got value 2 of 1");
  backend_->complete(0, 1);
}

}  // namespace
}  // namespace refrain::null_tests
