// Recordings run once through one finish, whole or in two parts, with a report.
#include "refrain/device/executor.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/session.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

/// Passes all on to a CPU device, notes the calls that matter here, and stops in them as a test says.
class Observed final : public backend::Backend {
 public:
  explicit Observed(std::unique_ptr<backend::Backend> inner)
      : Backend(inner->info, inner->kernels), inner_(std::move(inner)) {}

  std::vector<std::string> calls;
  std::vector<backend::PlanData> plans;
  std::vector<size_t> waits;                          // of each submission, how many
  std::function<void(size_t)> in_prepare, in_submit;  // with the number of the call, the first is 1

  /// True when the n-th submission, of queue 0, has completed within a time that is never needed.
  bool completes(uint64_t n) { return inner_->wait({inner_->id, 0, n}, 60s); }

  const backend::Allocation* allocate(const backend::BufferSpec& spec) override {
    return inner_->allocate(spec);
  }
  void release(const backend::Allocation* allocation) noexcept override { inner_->release(allocation); }
  backend::MemoryUsage memory() const override { return inner_->memory(); }
  void write(const backend::BufferView& to, std::span<const std::byte> from) override {
    inner_->write(to, from);
  }
  void read(const backend::BufferView& from, std::span<std::byte> to) const override {
    inner_->read(from, to);
  }
  std::unique_ptr<backend::Executable> prepare(const backend::PlanData& plan,
                                               const backend::ExecutableOptions& options) override {
    calls.emplace_back("prepare");
    plans.push_back(plan);
    if (in_prepare) in_prepare(plans.size());
    return inner_->prepare(plan, options);
  }
  backend::Point submit(const backend::Submission& submission) override {
    calls.emplace_back("submit");
    waits.push_back(submission.waits.size());
    if (in_submit) in_submit(waits.size());
    std::vector<backend::Point> points(submission.waits.begin(), submission.waits.end());
    std::vector<backend::Point> after(submission.after.begin(), submission.after.end());
    for (backend::Point& point : points) point.backend = inner_->id;
    for (backend::Point& point : after) point.backend = inner_->id;
    const backend::Point point = inner_->submit({submission.program, submission.updates, points, after});
    return {id, point.queue, point.value};
  }
  uint64_t completed(uint32_t queue) const override { return inner_->completed(queue); }
  bool wait(const backend::Point& point, std::chrono::nanoseconds timeout) override {
    return inner_->wait({inner_->id, point.queue, point.value}, timeout);
  }
  void signal_host(uint64_t value) override { inner_->signal_host(value); }
  void end_host() noexcept override { inner_->end_host(); }
  void recover(uint32_t queue) noexcept override { inner_->recover(queue); }
  void timestamps(const backend::Executable& program, std::span<backend::TickSpan> spans) const override {
    inner_->timestamps(program, spans);
  }

 private:
  std::unique_ptr<backend::Backend> inner_;
};

std::unique_ptr<backend::Backend> bare_cpu() {
  backend::CpuOptions options;
  options.threads = 2;
  return backend::make_cpu(options, kKernels);
}

/// A chain of `length` commands through temps, from a to b.
void record_chain(CommandEncoder& encoder, const Buffer& a, const Buffer& b, int length) {
  const MixConstants c{1, 16, 0, 16};
  Temp t = encoder.temp(DType::u32, {16});
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(t)}, c);
  for (int i = 2; i < length; ++i) {
    const Temp next = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(next)}, c);
    t = next;
  }
  dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(b)}, c);
}

class Executor : public testing::Test {
 protected:
  void chain(CommandEncoder& encoder, int length) { record_chain(encoder, a_, b_, length); }
  static uint32_t after(uint32_t value, int length) {
    for (int i = 0; i < length; ++i) value = mixed(mixed(value, 0), 1);
    return value;
  }

  Device device_{backend::make_validate(bare_cpu()), {}, {}};
  Buffer a_ = device_.buffer(DType::u32, {16}), b_ = device_.buffer(DType::u32, {16});
};

TEST_F(Executor, RunsAndReports) {
  a_.span<uint32_t>()[2] = 9;
  CommandEncoder encoder = device_.encoder();
  chain(encoder, 5);
  const Report report = execute(encoder, {.timestamps = true, .label = "five"});
  EXPECT_EQ(report.plan.commands, 5u);
  EXPECT_EQ(report.plan.levels, 5u);
  EXPECT_EQ(report.parts.size(), 1u);
  EXPECT_GT(report.plan_time, 0ns);
  EXPECT_GT(report.prepare_time, 0ns);
  EXPECT_GT(report.submit_time, 0ns);
  const Profile profile = profile_of(device_, report, 10s);
  EXPECT_EQ(b_.span<uint32_t>()[2], after(9, 5));
  EXPECT_EQ(profile.label(), "five");
  EXPECT_EQ(profile.spans().size(), 5u);
  EXPECT_GT(profile.duration_ns(), 0);
  EXPECT_EQ(device_.counters().commits, 1u);
}

TEST_F(Executor, ASplitDoesTheSame) {
  for (const int length : {2, 64, 65, 200, 3000}) {
    a_.span<uint32_t>()[2] = static_cast<uint32_t>(length);
    CommandEncoder encoder = device_.encoder();
    chain(encoder, length);
    const Report report = execute(encoder, {.split = true, .timestamps = true, .queue = 1});
    const size_t first = std::max<size_t>(64, static_cast<size_t>(length) / 10);
    ASSERT_EQ(report.parts.size(), static_cast<size_t>(length) > first ? 2u : 1u) << length;
    EXPECT_EQ(report.parts[0].plan().data().commands.size(), std::min(first, static_cast<size_t>(length)));
    EXPECT_EQ(profile_of(device_, report, 10s).spans().size(), static_cast<size_t>(length));
    EXPECT_EQ(b_.span<uint32_t>()[2], after(static_cast<uint32_t>(length), length)) << length;
  }
}

TEST(ExecutorCalls, TheFirstPartRunsBeforeTheSecondIsPrepared) {
  const auto observed = std::make_shared<Observed>(bare_cpu());
  Device device(observed, {}, {});
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
  CommandEncoder encoder = device.encoder();
  record_chain(encoder, a, b, 200);
  bool ran = false;
  observed->in_prepare = [&](size_t n) {
    if (n == 2) ran = observed->completes(1);
  };
  const Report report = execute(encoder, {.split = true});
  EXPECT_TRUE(ran) << "all of the first part, while nothing of the second is prepared";
  EXPECT_EQ(observed->calls, (std::vector<std::string>{"prepare", "submit", "prepare", "submit"}));
  device.wait(report.point, 10s);
}

TEST(ExecutorCalls, TimesAreOfWhatTheyAreCalled) {
  const auto observed = std::make_shared<Observed>(bare_cpu());
  Device device(observed, {}, {});
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
  constexpr auto kPrepare = 15ms, kSubmit = 10ms;
  observed->in_prepare = [&](size_t) { std::this_thread::sleep_for(kPrepare); };
  observed->in_submit = [&](size_t) { std::this_thread::sleep_for(kSubmit); };
  for (const bool split : {false, true}) {
    CommandEncoder encoder = device.encoder();
    record_chain(encoder, a, b, 200);
    const auto begin = std::chrono::steady_clock::now();
    const Report report = execute(encoder, {.plan = {.check = true}, .split = split});
    const auto all = std::chrono::steady_clock::now() - begin;
    const int parts = split ? 2 : 1;
    ASSERT_EQ(report.parts.size(), static_cast<size_t>(parts));
    EXPECT_GE(report.prepare_time, parts * kPrepare);
    EXPECT_GE(report.submit_time, parts * kSubmit);
    EXPECT_GT(report.plan_time, 0ns);
    EXPECT_LE(report.plan_time + report.prepare_time + report.submit_time, all) << "none contains another";
    std::vector<std::string> passes;
    std::chrono::duration<double, std::micro> passes_time{0};
    for (const graph::PassTime& pass : report.plan.passes) {
      EXPECT_GT(pass.us, 0) << pass.name;
      passes.emplace_back(pass.name);
      passes_time += std::chrono::duration<double, std::micro>(pass.us);
    }
    EXPECT_EQ(passes, (std::vector<std::string>{"expand", "fuse", "lower", "hazards", "reorder", "memory",
                                                "hazards again", "check"}));
    EXPECT_LE(passes_time, report.plan_time);
    device.wait(report.point, 10s);
  }
}

TEST(ExecutorCalls, TimestampsAddNoEdgeAndNoWait) {
  const auto observed = std::make_shared<Observed>(bare_cpu());
  Device device(observed, {}, {});
  std::vector<Buffer> buffers;
  for (int i = 0; i < 6; ++i) buffers.push_back(device.buffer(DType::u32, {16}));
  const Point host = device.host_point();
  for (const bool timed : {false, true}) {
    CommandEncoder encoder = device.encoder();
    for (uint32_t i = 0; i < 40; ++i) {
      dispatch(encoder, kMix,
               std::array{Operand(buffers[i * 7 % 3]), Operand(), Operand(buffers[3 + i * 5 % 3])},
               MixConstants{i, 16, 0, 16});
    }
    ExecuteOptions options;
    options.timestamps = timed;
    options.waits = {host};
    execute(encoder, options);
  }
  device.signal(host);
  device.synchronize(buffers[3], 10s);
  ASSERT_EQ(observed->plans.size(), 2u);
  const backend::PlanData &plain = observed->plans[0], &timed = observed->plans[1];
  EXPECT_GT(plain.deps.size(), 10u);
  EXPECT_EQ(timed.deps, plain.deps);
  ASSERT_EQ(timed.commands.size(), plain.commands.size());
  for (size_t i = 0; i < plain.commands.size(); ++i) {
    EXPECT_EQ(timed.commands[i].level, plain.commands[i].level);
    EXPECT_EQ(timed.commands[i].deps.first, plain.commands[i].deps.first);
    EXPECT_EQ(timed.commands[i].deps.count, plain.commands[i].deps.count);
  }
  EXPECT_EQ(observed->waits, (std::vector<size_t>{1, 1}));
  EXPECT_EQ(device.counters().waits_derived, 0u);
}

class SplitFaults : public testing::Test {
 protected:
  /// A split recording on queue 0, label "two", with the n-th of something failing.
  Report finish(const backend::FaultPlan& plan) {
    backend::set_faults(*fault_, plan);
    CommandEncoder encoder = device_.encoder();
    record_chain(encoder, a_, b_, 200);
    return execute(encoder, {.split = true, .timestamps = true, .label = "two"});
  }
  /// 0 as long as the chain has not come to its end. Not by a span, which is refused after a failure.
  uint32_t result() const { return memory_[2]; }

  std::shared_ptr<backend::Backend> fault_ = backend::make_fault(bare_cpu());
  Device device_{fault_, {}, {}};
  alignas(64) std::array<uint32_t, 16> memory_{};
  Buffer a_ = device_.buffer(DType::u32, {16}),
         b_ = device_.import_memory(memory_.data(), DType::u32, {16}, nullptr);
};

TEST_F(SplitFaults, TheSecondPartFailsWithTheFailureOfTheFirst) {
  backend::FaultPlan plan;
  plan.command = 5;
  const Report report = finish(plan);
  ASSERT_EQ(report.parts.size(), 2u);
  const std::string cause = "fault: submission 1 of queue 0 'two' failed at command 4 'two'";
  const std::string second =
      "[submission] 'two', 2 of queue 0: fault: submission 2 of queue 0 'two' did not run: " + cause;
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(refusal<DeviceError>([&] { device_.wait(report.point, 10s); }), second);
  EXPECT_EQ(refusal<DeviceError>([&] { (void)profile_of(device_, report, 10s); }), second);
  Point first = report.point;
  first.value = 1;
  EXPECT_EQ(refusal<DeviceError>([&] { device_.wait(first, 10s); }),
            "[submission] 'two', 1 of queue 0: " + cause);
  EXPECT_EQ(result(), 0u) << "nothing of the second part has run";
  EXPECT_EQ(device_.counters().failures, 2u);
}

TEST_F(SplitFaults, OfTheSecondPartLeavesTheFirst) {
  backend::FaultPlan plan;
  plan.command = 70;  // the first part has 64
  const Report report = finish(plan);
  EXPECT_NE(refusal<DeviceError>([&] { device_.wait(report.point, 10s); }).find("failed at command 5 'two'"),
            std::string::npos);
  Point first = report.point;
  first.value = 1;
  device_.wait(first, 10s);
  EXPECT_EQ(Profile(device_, report.parts[0]).spans().size(), 64u);
  EXPECT_EQ(result(), 0u);
}

TEST_F(SplitFaults, ARefusedSecondPartIsThrownWhileTheFirstRuns) {
  for (uint64_t backend::FaultPlan::*refused : {&backend::FaultPlan::prepare, &backend::FaultPlan::submit}) {
    backend::FaultPlan plan;
    plan.*refused = 2;
    const uint64_t before = device_.counters().submissions;
    EXPECT_NE(refusal<DeviceError>([&] { finish(plan); }).find(" 2 refused"), std::string::npos);
    EXPECT_EQ(device_.counters().submissions, before + 1);
    device_.synchronize(a_, 10s);
    EXPECT_EQ(result(), 0u);
  }
  // The device lives.
  device_.wait(finish({}).point, 10s);
  EXPECT_NE(result(), 0u);
}

TEST_F(Executor, AnEmptyRecordingRuns) {
  for (const bool split : {false, true}) {
    CommandEncoder encoder = device_.encoder();
    const Report report = execute(encoder, {.split = split, .timestamps = true});
    EXPECT_EQ(report.parts.size(), 1u);
    EXPECT_EQ(report.plan.commands, 0u);
    EXPECT_TRUE(profile_of(device_, report, 10s).spans().empty());
  }
}

TEST_F(Executor, APlanThatFailsSpendsTheEncoder) {
  static constexpr OpSchema kUnknown{"unknown", kUpdateArgs, 0, nullptr};
  CommandEncoder encoder = device_.encoder();
  encoder.dispatch({&kUnknown, std::array{Operand(a_), Operand(b_)}, {}});
  EXPECT_NE(refusal([&] { execute(encoder); }), "nothing was thrown");
  const std::string spent = "[encoder] execute: expected one that records, got one that failed to commit";
  EXPECT_EQ(refusal([&] { execute(encoder); }).substr(0, spent.size()), spent);
  EXPECT_EQ(device_.counters().submissions, 0u);
  EXPECT_EQ(device_.counters().commits, 0u);
}

TEST_F(Executor, OptionsReachThePasses) {
  const auto arena = [&](bool reuse) {
    CommandEncoder encoder = device_.encoder();
    chain(encoder, 10);
    ExecuteOptions options;
    options.plan.reuse_memory = reuse;
    const Report report = execute(encoder, options);
    device_.wait(report.point, 10s);
    return report.plan.arena_bytes;
  };
  EXPECT_LT(arena(true), arena(false));
}

TEST_F(Executor, AnEncoderIsSpentByWhatIsAccepted) {
  CommandEncoder encoder = device_.encoder();
  chain(encoder, 3);
  EXPECT_NE(refusal([&] { execute(encoder, {.queue = 9}); }), "nothing was thrown");
  device_.wait(execute(encoder).point, 10s);
  EXPECT_EQ(refusal([&] { execute(encoder); }),
            "[encoder] execute: expected one that records, got one that was committed; make a new encoder");
  EXPECT_NE(refusal([&] { (void)profile_of(device_, Report{}); }), "nothing was thrown");
  EncoderSession session(device_);
  CommandEncoder& stage = session.begin_stage("stage");
  chain(stage, 3);
  EXPECT_EQ(refusal([&] { execute(stage); }),
            "[encoder] execute: expected an encoder of your own, got a session's stage; end it there");
  EXPECT_EQ(device_.counters().submissions, 1u);
}

TEST_F(Executor, ManyMayBeInFlight) {
  const Point host = device_.host_point();
  std::vector<Report> reports;
  for (int i = 0; i < 4; ++i) {
    CommandEncoder encoder = device_.encoder();
    chain(encoder, 3 + i);
    ExecuteOptions options;
    options.queue = static_cast<uint32_t>(i);
    options.waits = {host};
    options.timestamps = true;
    reports.push_back(execute(encoder, options));
  }
  EXPECT_FALSE(device_.reached(reports[0].point));
  device_.signal(host);
  for (const Report& report : reports)
    EXPECT_EQ(profile_of(device_, report, 10s).spans().size(), report.plan.commands);
  EXPECT_EQ(b_.span<uint32_t>()[0], after(0, 6)) << "all write b, in the order of their submission";
}

}  // namespace
}  // namespace refrain::null_tests
