// Failure and loss as backend.h promises them, on every device inside the fault decorator; and sweeps that
// fail the n-th of everything until a whole run succeeds.
#include "refrain/backend/fault/fault_backend.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <functional>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/error.h"
#include "tests/conformance/devices.h"
#include "tests/conformance/test_kernels.h"
#include "tests/eventually.h"

namespace refrain::backend::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr nanoseconds kLong = std::chrono::seconds(60);
constexpr uint32_t kRows = 8;
constexpr size_t kBytes = kRows * sizeof(uint32_t);

std::string failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const DeviceLost& error) {
    return std::string("lost: ") + error.what();
  } catch (const DeviceError& error) {
    return error.what();
  }
  return {};
}

class Faults : public ::testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    device_ = make_fault(GetParam().make());
    computes_ = GetParam().name.find("null") == std::string::npos;
    data_ = device_->allocate({kBytes, "data"});
    // Three increments, each of all rows.
    for (int i = 0; i < 3; ++i) {
      builder_.add(
          kIncrement, {inout(view(data_))},
          {.launch = {kRows, 1, 1, 0}, .constants = {1, 0, 0, 0}, .label = "part " + std::to_string(i)});
    }
    builder_.derive_deps();
    for (uint32_t queue = 0; queue < 2; ++queue)
      programs_.push_back(device_->prepare(builder_.plan, {.queue = queue}));
  }

  Point submit(uint32_t queue, std::span<const Point> waits = {}) {
    return device_->submit({programs_[queue].get(), {}, waits});
  }
  std::string wait(const Point& point) {
    return failure_of([&] { EXPECT_TRUE(device_->wait(point, kLong)); });
  }
  uint32_t value() const { return contents<uint32_t>(*device_, data_)[kRows - 1]; }
  void expect_value(uint32_t expected) const {
    if (computes_) {
      EXPECT_EQ(value(), expected);
    }
  }

  std::unique_ptr<Backend> device_;
  bool computes_ = true;
  const Allocation* data_ = nullptr;
  PlanBuilder builder_;
  std::vector<std::unique_ptr<Executable>> programs_;
};

TEST_P(Faults, RefusalsLeaveTheDeviceAlive) {
  const size_t used = device_->memory().used_bytes;
  set_faults(*device_, {.allocation = 2, .copy = 2, .prepare = 1, .submit = 1});
  device_->release(device_->allocate({64, "first"}));
  EXPECT_EQ(failure_of([&] {
              device_->allocate({64, "second"});
            }),
            "fault: allocation 2 refused: 64 bytes wanted for 'second'");
  EXPECT_EQ(device_->memory().used_bytes, used);
  device_->release(device_->allocate({64, "third"}));
  put(*device_, view(data_, 0, 4), 0u);
  EXPECT_EQ(failure_of([&] { put(*device_, view(data_, 0, 4), 1u); }), "fault: copy 2 (write) refused");
  EXPECT_EQ(contents<uint32_t>(*device_, data_)[0], 0u);
  EXPECT_EQ(failure_of([&] { device_->prepare(builder_.plan, {}); }), "fault: prepare 1 refused");
  EXPECT_EQ(failure_of([&] { submit(0); }), "fault: submit 1 refused");
  const Point point = submit(0);
  EXPECT_EQ(point.value, 1u) << "what was refused takes no place";
  EXPECT_EQ(wait(point), "");
  expect_value(3);
  EXPECT_EQ(fault_counts(*device_).faults, 4u);
}

TEST_P(Faults, FailedSubmission) {
  set_faults(*device_, {.execution = 2});
  const Point before = submit(0), failed = submit(0), behind = submit(0);
  const Point waiting = submit(1, {&behind, 1});
  const Point late = submit(1);
  const std::string cause = "fault: submission 2 of queue 0 failed before its first command";
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(wait(before), "") << "it completed before the failure";
    EXPECT_EQ(wait(failed), cause) << "a failure is thrown each time";
    EXPECT_EQ(wait(behind), "fault: submission 3 of queue 0 did not run: " + cause);
    EXPECT_EQ(wait(waiting), "fault: submission 1 of queue 1 did not run: " + cause);
    EXPECT_EQ(wait(late), "") << "a submission that fails with another stops no queue";
  }
  EXPECT_EQ(device_->completed(0), 3u) << "what failed has ended";
  EXPECT_EQ(device_->completed(1), 2u);
  expect_value(6);
  // Afterwards as before; other queues run.
  EXPECT_EQ(wait(submit(0)), "fault: submission 4 of queue 0 did not run: " + cause);
  const auto other = device_->prepare(builder_.plan, {.queue = 2});
  EXPECT_EQ(wait(device_->submit({other.get(), {}, {}})), "");
  expect_value(9);
  EXPECT_EQ(fault_counts(*device_).faults, 1u);
}

TEST_P(Faults, RecoveredQueue) {
  set_faults(*device_, {.execution = 1});
  const Point failed = submit(0), behind = submit(0);
  EXPECT_NE(wait(failed), "");
  device_->recover(1);
  EXPECT_NE(wait(submit(0)), "") << "that was another queue";
  device_->recover(0);
  const Point good = submit(0), waits = submit(1, {&good, 1});
  EXPECT_EQ(wait(good), "");
  EXPECT_EQ(wait(waits), "");
  expect_value(6);
  EXPECT_NE(wait(failed), "") << "what has failed stays so";
  EXPECT_NE(wait(behind), "");
  EXPECT_NE(wait(submit(1, {&behind, 1})), "");
  EXPECT_EQ(wait(submit(1)), "");
  set_faults(*device_, {.execution = 1});
  EXPECT_NE(wait(submit(0)), "");
  EXPECT_NE(wait(submit(0)), "") << "it stops again";
}

TEST_P(Faults, AfterIsOrderAlone) {
  set_faults(*device_, {.execution = 1});
  const Point host{device_->id, kHostQueue, 1};
  const Point failed = submit(0, {&host, 1});
  const Point after = device_->submit({programs_[1].get(), {}, {}, {&failed, 1}});
  if (computes_) {
    EXPECT_FALSE(device_->wait(after, milliseconds(5)));
  }
  device_->signal_host(1);
  EXPECT_EQ(wait(after), "");
  EXPECT_NE(wait(failed), "");
  expect_value(3);
}

TEST_P(Faults, FailedCommand) {
  set_faults(*device_, {.command = 3 + 3});
  EXPECT_EQ(wait(submit(0)), "");
  EXPECT_EQ(wait(submit(0)), "fault: submission 2 of queue 0 failed at command 2 'part 2'");
  expect_value(5);
}

TEST_P(Faults, LabelsOfSubmissions) {
  const auto labelled = device_->prepare(builder_.plan, {.queue = 2, .label = "decode"});
  set_faults(*device_, {.execution = 1});
  EXPECT_EQ(wait(device_->submit({labelled.get(), {}, {}})),
            "fault: submission 1 of queue 2 'decode' failed before its first command");
}

TEST_P(Faults, FailureWaitsForItsTurn) {
  if (!computes_) GTEST_SKIP() << "null completes at once, whatever it waits for";
  set_faults(*device_, {.execution = 1});
  const Point host{device_->id, kHostQueue, 1};
  const Point failed = submit(0, {&host, 1});
  // What follows from a failure waits for nothing that may never come, but for its predecessors in the queue.
  const Point never[] = {failed, {device_->id, kHostQueue, 2}};
  const Point behind = submit(1, never);
  EXPECT_FALSE(device_->wait(failed, milliseconds(10)));
  EXPECT_NE(wait(behind), "");
  device_->signal_host(1);
  EXPECT_EQ(wait(failed), "fault: submission 1 of queue 0 failed before its first command");
}

TEST_P(Faults, Delay) {
  constexpr auto kDelay = milliseconds(80);
  set_faults(*device_, {.delay = kDelay});
  const auto begin = std::chrono::steady_clock::now();
  const Point first = submit(0);
  set_faults(*device_, {});
  const Point second = submit(0), other = submit(1, {&first, 1});
  EXPECT_EQ(device_->completed(0), 0u);
  EXPECT_FALSE(device_->wait(second, milliseconds(1)));
  EXPECT_FALSE(device_->wait(other, nanoseconds(0)));
  EXPECT_EQ(wait(second), "");
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kDelay);
  EXPECT_EQ(device_->completed(0), 2u);
  EXPECT_EQ(wait(other), "");
  EXPECT_EQ(wait(submit(0)), "");
  expect_value(12);
}

TEST_P(Faults, Loss) {
  const Point host{device_->id, kHostQueue, 1};
  const Point done = submit(0);
  EXPECT_EQ(wait(done), "");
  const Point blocked = submit(0, {&host, 1});
  const Point behind = submit(1, {&blocked, 1});
  std::vector<std::thread> waiters;
  std::atomic<int> losses{0}, reached{0};
  for (const Point& point : {blocked, behind, host}) {
    waiters.emplace_back([&, point] {
      const std::string failure = failure_of([&] { device_->wait(point, kLong); });
      ++(failure.starts_with("lost: ") ? losses : reached);
    });
  }
  if (computes_) std::this_thread::sleep_for(milliseconds(50));  // until all wait
  if (!computes_) {
    for (std::thread& waiter : waiters) waiter.join();  // null lets nobody wait
    waiters.clear();
  }
  set_faults(*device_, {.loss = 2});
  const Allocation* last = device_->allocate({64, "last"});
  const std::string loss = "lost: fault: device lost at call 2 (prepare)";
  EXPECT_EQ(failure_of([&] { device_->prepare(builder_.plan, {}); }), loss);
  for (std::thread& waiter : waiters) waiter.join();
  if (computes_) {
    EXPECT_EQ(losses.load(), 3);
  }

  TickSpan span;
  for (const std::function<void()>& call : std::initializer_list<std::function<void()>>{
           [&] {
             device_->allocate({64, "later"});
           },
           [&] { device_->advise({}, Advice::resident); }, [&] { device_->memory(); },
           [&] { put(*device_, view(data_, 0, 4), 1u); }, [&] { contents<uint32_t>(*device_, data_); },
           [&] { device_->prepare(builder_.plan, {}); }, [&] { submit(0); },
           [&] { device_->wait(done, kLong); }, [&] { device_->wait(blocked, nanoseconds(0)); },
           [&] {
             device_->timestamps(*programs_[0], {&span, 1});
           }}) {
    EXPECT_EQ(failure_of(call), loss);
  }
  device_->release(last);
  device_->signal_host(7);
  EXPECT_EQ(device_->completed(kHostQueue), 0u);
  EXPECT_EQ(device_->completed(0), 2u) << "nothing is in flight on a lost device";
  EXPECT_EQ(device_->completed(1), 1u);
  set_faults(*device_, {});
  EXPECT_EQ(failure_of([&] { submit(0); }), loss) << "a loss is for ever";
}

TEST_P(Faults, SetFromThreads) {
  std::atomic<bool> stop{false};
  std::thread setter([&] {
    for (uint64_t i = 0; !stop.load(); ++i) {
      set_faults(*device_, {.allocation = i % 3, .submit = i % 5});
      (void)fault_counts(*device_);
      std::this_thread::yield();
    }
  });
  for (int i = 0; i < 500; ++i) {
    const Allocation* memory = nullptr;
    failure_of([&] { memory = device_->allocate({64, "some"}); });
    if (memory != nullptr) device_->release(memory);
    Point point;
    failure_of([&] { point = submit(0); });
    if (point.backend != 0) {
      EXPECT_EQ(wait(point), "");
    }
  }
  stop = true;
  setter.join();
}

// A use of everything: memory, an import, programs on two queues, updates, waits across queues, a host point.
// Throws what the device throws, and lets go of all that it holds on the way, as a front does.
class Sequence {
 public:
  explicit Sequence(Backend& device) : device_(device) {}

  ~Sequence() {
    // What is in flight has to end before its memory goes; a host point that it may wait for is signalled.
    device_.signal_host(1);
    for (const Point& point : points_)
      test::eventually([&] { return device_.completed(point.queue) >= point.value; });
    programs_.clear();
    for (const Allocation* allocation : allocations_) device_.release(allocation);
  }

  // True when the results are those of an undisturbed run; a null device computes none.
  bool run() {
    const Allocation* a = allocate({kBytes, "a"});
    const Allocation* b = allocate({kBytes, "b"});
    const Allocation* import = allocate({kBytes, "import", MemoryKind::import_host, import_.data()});
    PlanBuilder& first = plans_[0];
    first.add(kIncrement, {inout(view(a))},
              {.launch = {kRows, 1, 1, 0}, .constants = {1, 0, 0, 0}, .label = "x"});
    first.add(kCopy, {in(view(a)), out(view(b))}, {.launch = {kRows, 1, 1, 0}, .label = "y"});
    first.derive_deps();
    PlanBuilder& second = plans_[1];
    second.add(kAdd, {in(view(b)), in(view(b)), out(view(import))},
               {.launch = {kRows, 1, 1, 0}, .label = "z"});
    programs_.push_back(device_.prepare(first.plan, {}));
    programs_.push_back(device_.prepare(second.plan, {.queue = 1, .timestamps = true}));
    const std::array<uint32_t, kRows> seven = {7, 7, 7, 7, 7, 7, 7, 7};
    put(device_, view(b), seven);
    const UpdateData update{view(a), std::as_bytes(std::span(seven))};
    const Point host{device_.id, kHostQueue, 1};
    const Point produced = submit({programs_[0].get(), {&update, 1}, {&host, 1}});
    const Point consumed = submit({programs_[1].get(), {}, {&produced, 1}});
    device_.signal_host(1);
    if (!device_.wait(consumed, kLong)) return false;
    TickSpan span;
    device_.timestamps(*programs_[1], {&span, 1});
    const Point again = submit({programs_[0].get(), {}, {&consumed, 1}});
    const bool reached = device_.wait(again, kLong);
    return contents<uint32_t>(device_, b)[0] == 9 && import_[0] == 16 && reached;
  }

 private:
  const Allocation* allocate(const BufferSpec& spec) {
    allocations_.push_back(device_.allocate(spec));
    return allocations_.back();
  }
  Point submit(const Submission& submission) {
    points_.push_back(device_.submit(submission));
    return points_.back();
  }

  Backend& device_;
  alignas(64) std::array<uint32_t, kRows> import_{};
  std::array<PlanBuilder, 2> plans_;
  std::vector<std::unique_ptr<Executable>> programs_;
  std::vector<const Allocation*> allocations_;
  std::vector<Point> points_;
};

TEST_P(Faults, EveryNthOfASequence) {
  constexpr uint64_t FaultPlan::*kKinds[] = {
      &FaultPlan::allocation, &FaultPlan::copy,    &FaultPlan::prepare, &FaultPlan::submit,
      &FaultPlan::execution,  &FaultPlan::command, &FaultPlan::loss};
  constexpr uint64_t kFaults[] = {3, 2, 2, 3, 3, 5, 13};  // how many of each the sequence has
  // The decorator bare, and under the checker of the contract, which throws when the sequence breaks it.
  for (const bool validated : {false, true}) {
    for (size_t kind = 0; kind < std::size(kKinds); ++kind) {
      uint64_t n = 0;
      for (bool faulted = true; faulted;) {
        ASSERT_LT(++n, 100u);
        std::unique_ptr<Backend> device = make_fault(GetParam().make());
        Backend* const fault = device.get();
        if (validated) device = make_validate(std::move(device));
        FaultPlan plan;
        plan.*kKinds[kind] = n;
        set_faults(*fault, plan);
        bool right = false;
        std::string failure;
        {
          Sequence sequence(*device);
          failure = failure_of([&] { right = sequence.run(); });
        }
        faulted = fault_counts(*fault).faults > 0;
        ASSERT_EQ(!failure.empty(), faulted) << "kind " << kind << ", n " << n << ": " << failure;
        set_faults(*fault, {});
        if (failure.starts_with("lost: ")) {
          EXPECT_EQ(failure_of([&] { Sequence(*device).run(); }), failure);
          continue;
        }
        EXPECT_EQ(device->memory().used_bytes, 0u) << "kind " << kind << ", n " << n << ": leaked";
        if (!faulted) {
          EXPECT_TRUE(right || !computes_);
        }
        // Refusals leave everything usable; a failed queue stays failed.
        if (kKinds[kind] != &FaultPlan::execution && kKinds[kind] != &FaultPlan::command) {
          const std::string next = failure_of([&] { right = Sequence(*device).run(); });
          EXPECT_EQ(next, "") << "kind " << kind << ", n " << n;
          EXPECT_TRUE(right || !computes_);
        }
      }
      EXPECT_EQ(n - 1, kFaults[kind]) << "kind " << kind;
    }
  }
}

std::vector<DeviceCase> undecorated() {
  std::vector<DeviceCase> result;
  for (const DeviceCase& device : devices()) {
    if (device.name.find("fault") == std::string::npos) result.push_back(device);
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Devices, Faults, ::testing::ValuesIn(undecorated()),
                         [](const auto& test) { return test.param.name; });

TEST(FaultControls, OfAnotherBackend) {
  const auto null = make_null(test_kernels());
  EXPECT_THROW(set_faults(*null, {}), InvalidArgument);
  EXPECT_THROW((void)fault_counts(*null), InvalidArgument);
}

}  // namespace
}  // namespace refrain::backend::testing
