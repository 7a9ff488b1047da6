// Recordings run once through one finish, whole or in two parts, with a report.
#include "refrain/stream/executor.h"

#include <gtest/gtest.h>

#include <functional>

#include "refrain/device/cpu/cpu_device.h"
#include "refrain/device/validate/validate_device.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

class Executor : public testing::Test {
 protected:
  static Device cpu() {
    device::CpuOptions options;
    options.threads = 2;
    return Device(device::make_validate(device::make_cpu(options, kKernels)), {}, {});
  }
  /// A chain of `length` commands through temps, from a_ to b_.
  void chain(CommandEncoder& encoder, int length) {
    const MixConstants c{1, 16, 0, 16};
    Temp t = encoder.temp(DType::u32, {16});
    dispatch(encoder, kMix, std::array{Operand(a_), Operand(), Operand(t)}, c);
    for (int i = 2; i < length; ++i) {
      const Temp next = encoder.temp(DType::u32, {16});
      dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(next)}, c);
      t = next;
    }
    dispatch(encoder, kMix, std::array{Operand(t), Operand(), Operand(b_)}, c);
  }
  static uint32_t after(uint32_t value, int length) {
    for (int i = 0; i < length; ++i) value = mixed(mixed(value, 0), 1);
    return value;
  }

  Device device_ = cpu();
  GraphExecutor executor_{device_};
  Buffer a_ = device_.buffer(DType::u32, {16}), b_ = device_.buffer(DType::u32, {16});
};

TEST_F(Executor, RunsAndReports) {
  a_.span<uint32_t>()[2] = 9;
  GraphSession session = executor_.begin();
  chain(session.encoder(), 5);
  const Report report = session.finish({.timestamps = true, .label = "five"});
  EXPECT_EQ(report.plan.commands, 5u);
  EXPECT_EQ(report.plan.levels, 5u);
  EXPECT_EQ(report.parts.size(), 1u);
  EXPECT_GT(report.plan_time, 0ns);
  EXPECT_GT(report.prepare_time, 0ns);
  EXPECT_GT(report.submit_time, 0ns);
  const Profile profile = executor_.profile(report, 10s);
  EXPECT_EQ(b_.span<uint32_t>()[2], after(9, 5));
  EXPECT_EQ(profile.label(), "five");
  EXPECT_EQ(profile.spans().size(), 5u);
  EXPECT_GT(profile.duration_ns(), 0);
  EXPECT_EQ(device_.counters().commits, 1u);
}

TEST_F(Executor, ASplitDoesTheSame) {
  for (const int length : {2, 64, 65, 200, 3000}) {
    a_.span<uint32_t>()[2] = static_cast<uint32_t>(length);
    GraphSession session = executor_.begin();
    chain(session.encoder(), length);
    const Report report = session.finish({.split = true, .timestamps = true, .queue = 1});
    const size_t first = std::max<size_t>(64, static_cast<size_t>(length) / 10);
    ASSERT_EQ(report.parts.size(), static_cast<size_t>(length) > first ? 2u : 1u) << length;
    EXPECT_EQ(report.parts[0].plan().data().commands.size(), std::min(first, static_cast<size_t>(length)));
    EXPECT_EQ(executor_.profile(report, 10s).spans().size(), static_cast<size_t>(length));
    EXPECT_EQ(b_.span<uint32_t>()[2], after(static_cast<uint32_t>(length), length)) << length;
  }
}

TEST_F(Executor, OptionsReachThePasses) {
  const auto arena = [&](bool reuse) {
    GraphSession session = executor_.begin();
    chain(session.encoder(), 10);
    FinishOptions options;
    options.plan.reuse_memory = reuse;
    const Report report = session.finish(options);
    device_.wait(report.point, 10s);
    return report.plan.arena_bytes;
  };
  EXPECT_LT(arena(true), arena(false));
}

TEST_F(Executor, ASessionIsSpentByFinishAlone) {
  GraphSession session = executor_.begin();
  chain(session.encoder(), 3);
  EXPECT_NE(refusal([&] { session.encoder().commit(); }), "nothing was thrown");
  EXPECT_NE(refusal([&] { session.encoder().finish(); }), "nothing was thrown");
  EXPECT_NE(refusal([&] { session.finish({.queue = 9}); }), "nothing was thrown");
  device_.wait(session.finish().point, 10s);
  const std::string spent = ": expected one that records, got one that was committed; make a new encoder";
  EXPECT_EQ(refusal([&] { session.encoder(); }), "[encoder] encoder" + spent);
  EXPECT_EQ(refusal([&] { session.finish(); }), "[encoder] finish" + spent);
  EXPECT_NE(refusal([&] { (void)executor_.profile(Report{}); }), "nothing was thrown");
  GraphSession dropped = executor_.begin();
  chain(dropped.encoder(), 3);
  GraphSession moved = std::move(dropped);
  EXPECT_NE(refusal([&] { dropped.encoder(); }), "nothing was thrown");  // NOLINT
  EXPECT_EQ(device_.counters().submissions, 1u);
}

TEST_F(Executor, ManyMayBeInFlight) {
  const Point host = device_.host_point();
  std::vector<Report> reports;
  for (int i = 0; i < 4; ++i) {
    GraphSession session = executor_.begin();
    chain(session.encoder(), 3 + i);
    FinishOptions options;
    options.queue = static_cast<uint32_t>(i);
    options.waits = {host};
    options.timestamps = true;
    reports.push_back(session.finish(options));
  }
  EXPECT_FALSE(device_.reached(reports[0].point));
  device_.signal(host);
  for (const Report& report : reports)
    EXPECT_EQ(executor_.profile(report, 10s).spans().size(), report.plan.commands);
  EXPECT_EQ(b_.span<uint32_t>()[0], after(0, 6)) << "all write b, in the order of their submission";
}

}  // namespace
}  // namespace refrain::null_tests
