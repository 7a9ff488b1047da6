// What only the CPU backend can be asked: counters that overflow after 2^31 replays, begun shortly before
// that.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/cpu/executable.h"
#include "refrain/backend/cpu/memory.h"
#include "refrain/backend/cpu/team.h"
#include "refrain/core/error.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

class Overflow : public ::testing::TestWithParam<uint32_t> {};

TEST_P(Overflow, EpochsAndSequences) {
  constexpr uint32_t kRows = 8, kReplays = 6, kNearly = cpu::Gate::kMaxEpoch - 3;
  cpu::Memory memory("", size_t{1} << 20);
  const auto cells = [](const Allocation* memory_of) { return static_cast<uint32_t*>(memory_of->host); };
  const Allocation* data = memory.allocate({kRows * sizeof(uint32_t), "data"});
  const Allocation* live = memory.allocate({sizeof(uint32_t), "live"});
  const Allocation* sum = memory.allocate({kRows * sizeof(uint32_t), "sum"});
  cells(live)[0] = kRows - 1;
  PlanBuilder builder;
  const Launch launch{kRows, 1, 1, 0};
  builder.add(kIncrement, {inout(view(data))},
              {.launch = launch, .constants = {1, 0, 0, 0}, .live = in(view(live))});
  builder.add(kAdd, {in(view(data)), in(view(data)), out(view(sum))}, {.launch = launch});
  builder.derive_deps();
  builder.fence();
  builder.add(kIncrement, {inout(view(sum))}, {.launch = launch, .constants = {5, 0, 0, 0}});
  // One program overflows in the middle of its replays, the other never; the team overflows as well.
  const cpu::CpuExecutable wrapping(builder.plan, {}, kNearly), plain(builder.plan, {});

  std::mutex mutex;
  std::condition_variable changed;
  uint32_t completed = 0;
  cpu::Team team(
      GetParam(), std::chrono::microseconds(20), true,
      [&] {
        const std::lock_guard lock(mutex);
        ++completed;
        changed.notify_all();
      },
      kNearly);
  uint32_t started = 0;
  for (uint32_t replay = 1; replay <= kReplays; ++replay) {
    for (const cpu::CpuExecutable* program : {&wrapping, &plain}) {
      team.start(*program);
      ++started;
      std::unique_lock lock(mutex);
      ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(60), [&] { return completed == started; }));
      ASSERT_EQ(cells(sum)[0], 2 * started + 5) << "replay " << replay;
      ASSERT_EQ(cells(sum)[kRows - 1], 5u) << "this row is not live";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Workers, Overflow, ::testing::Values(1u, 2u, 4u));

class Throwing : public ::testing::TestWithParam<uint32_t> {};

TEST_P(Throwing, FailsTheSubmissionAndWhatFollows) {
  CpuOptions options;
  options.threads = GetParam();
  const auto device = make_cpu(options, test_kernels());
  const Allocation* data = device->allocate({64 * sizeof(uint32_t), "data"});
  const Launch launch{64, 1, 1, 0};
  PlanBuilder builder, harmless;
  builder.add(kIncrement, {inout(view(data))}, {.launch = launch, .constants = {1, 0, 0, 0}});
  builder.add(kThrow, {inout(view(data))},
              {.launch = launch, .constants = {40, 0, 0, 0}, .label = "layer 7"});
  builder.add(kIncrement, {inout(view(data))}, {.launch = launch, .constants = {100, 0, 0, 0}});
  builder.derive_deps();
  harmless.add(kIncrement, {inout(view(data))}, {.launch = launch, .constants = {1, 0, 0, 0}});
  const auto good = device->prepare(harmless.plan, {});
  const auto bad = device->prepare(builder.plan, {});
  const auto waiting = device->prepare(harmless.plan, {.queue = 1});
  const auto other = device->prepare(harmless.plan, {.queue = 2});
  const auto unmoved = device->prepare({}, {.queue = 1});
  const auto failure_of = [&](const Point& point) -> std::string {
    try {
      EXPECT_TRUE(device->wait(point, std::chrono::seconds(60)));
    } catch (const DeviceError& error) {
      return error.what();
    }
    return {};
  };

  const Point before = device->submit({good.get(), {}, {}});
  const Point failed = device->submit({bad.get(), {}, {}});
  const Point behind = device->submit({good.get(), {}, {}});
  const Point never[] = {failed, {device->id, kHostQueue, 1}};
  const Point dependent = device->submit({waiting.get(), {}, never});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(failure_of(before), "");
    const std::string failure = failure_of(failed);
    for (const char* part : {"command 1", "throw_test", "layer 7", "row 40"})
      EXPECT_NE(failure.find(part), std::string::npos) << failure;
    for (const Point& point : {behind, dependent})
      EXPECT_NE(failure_of(point).find("row 40"), std::string::npos) << "it did not run";
  }
  EXPECT_NE(failure_of(device->submit({good.get(), {}, {}})), "") << "a failed queue stays failed";
  EXPECT_EQ(device->completed(0), 4u);
  EXPECT_EQ(failure_of(device->submit({unmoved.get(), {}, {}})), "") << "the dependent stopped no queue";
  EXPECT_EQ(device->completed(1), 2u);
  EXPECT_EQ(failure_of(device->submit({other.get(), {}, {}})), "") << "other queues run";
  for (const uint32_t value : contents<uint32_t>(*device, data))
    EXPECT_EQ(value, 3u) << "nothing after the throw has run";
}

constexpr ArgumentSpec kInOut[] = {{"input", Access::in, true}, {"output", Access::out, true}};
constexpr OpSchema kHastyOp{"hasty", kInOut, sizeof(Constants)};
std::atomic<uint32_t> hasty_calls{0};
constexpr TileKernel kHastyTiles{[](const TileArgs&) {
                                   ++hasty_calls;
                                   throw std::runtime_error("too early");
                                 },
                                 nullptr, [](const TileArgs&, uint32_t, uint32_t) {}};

TEST(Prefetching, WhatPrefetchThrowsFailsTheSubmission) {
  CpuOptions options;
  options.threads = 2;
  options.spin = kSpinForever;
  const auto device = make_cpu(options, test_kernels());
  Kernel hasty;
  hasty.name = "hasty_test";
  hasty.op = &kHastyOp;
  hasty.prefetches = 1;
  hasty.entry = &kHastyTiles;
  const Allocation* weight = device->allocate({64, "weight"});
  const Allocation* data = device->allocate({64, "data"});
  PlanBuilder builder;
  const uint32_t slow =
      builder.add(kIncrement, {inout(view(data))}, {.launch = {1, 1, 1, 0}, .constants = {1, 5000, 0, 0}});
  builder.add(hasty, {sealed(view(weight)), inout(view(data))},
              {.launch = {16, 1, 1, 0}, .deps = {slow}, .label = "layer 2"});
  const auto program = device->prepare(builder.plan, {});
  uint32_t failed = 0;
  for (int i = 0; i < 50; ++i) {
    const uint32_t before = hasty_calls;
    const Point point = device->submit({program.get(), {}, {}});
    std::string said;
    try {
      EXPECT_TRUE(device->wait(point, std::chrono::seconds(60)));
    } catch (const DeviceError& error) {
      said = error.what();
    }
    EXPECT_EQ(said, hasty_calls == before ? "" : "cpu: command 1 (hasty_test) 'layer 2' threw: too early");
    failed += !said.empty();
    device->recover(0);
  }
  EXPECT_GT(failed, 0u) << "nobody waited";
}

INSTANTIATE_TEST_SUITE_P(Workers, Throwing, ::testing::Values(1u, 2u, 4u));

}  // namespace
}  // namespace refrain::backend::testing
