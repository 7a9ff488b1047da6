// Runs of cheap commands on the CPU backend: values, order, who runs what, failures and times are those of the
// commands. How runs are chosen: refrain/backend/cpu/units_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <random>
#include <set>
#include <utility>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/cpu/executable.h"
#include "refrain/backend/cpu/memory.h"
#include "refrain/core/error.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

constexpr std::chrono::seconds kLong(60);

class Runs : public ::testing::TestWithParam<uint32_t> {
 protected:
  Runs() {
    CpuOptions options;
    options.threads = GetParam();
    device_ = make_cpu(options, test_kernels());
  }

  const Allocation* cells(size_t count) { return device_->allocate({count * sizeof(uint32_t), "cells"}); }
  bool run(const Executable& program) { return device_->wait(device_->submit({&program, {}, {}}), kLong); }

  std::unique_ptr<Backend> device_;
};

// Single cells that make runs, whole rows of eight tiles between them, live counts of 0 and 1, and fences.
TEST_P(Runs, RandomPlans) {
  constexpr uint32_t kCells = 32, kWide = 8;
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    std::mt19937 random(seed);
    const Allocation* data = cells(kCells);
    const Allocation* live = cells(2);
    put(*device_, view(live, 4, 4), 1u);
    const auto cell = [&](uint32_t i) { return view(data, i * 4, 4); };
    const auto wide = [&](uint32_t i) { return view(data, i * 4 * kWide, 4 * kWide); };
    PlanBuilder builder;
    std::vector<std::function<void(std::array<uint32_t, kCells>&)>> steps;
    for (int i = 0; i < 150; ++i) {
      PlanBuilder::Options options;
      options.constants = {static_cast<uint32_t>(random()), 0, static_cast<uint32_t>(random() | 1), 0};
      const uint32_t a = random() % kCells, value = options.constants.value;
      const uint32_t b = (a + 1 + random() % (kCells - 1)) % kCells;
      const uint32_t w = a / kWide, v = (w + 1) % (kCells / kWide), rows = random() % 2;
      switch (random() % 12) {
        case 0:
          options.launch = {kWide, 1, 1, 0};
          options.constants.delay_us = 20;
          builder.add(kCopy, {in(wide(w)), out(wide(v))}, options);
          steps.push_back([=](auto& x) { std::copy_n(&x[w * kWide], kWide, &x[v * kWide]); });
          break;
        case 1:
          options.launch = {kWide, 1, 1, 0};
          builder.add(kIncrement, {inout(wide(w))}, options);
          steps.push_back([=](auto& x) {
            for (uint32_t k = 0; k < kWide; ++k) x[w * kWide + k] += value;
          });
          break;
        case 2:
        case 3:
          options.live = in(view(live, rows * 4, 4));
          builder.add(kIncrement, {inout(cell(a))}, options);
          steps.push_back([=](auto& x) { x[a] += rows * value; });
          break;
        case 4:
          if (random() % 4 == 0) builder.fence();
          break;
        case 5:
        case 6:
          options.constants.delay_us = seed % 2 == 0 ? 20 : 0;  // such runs are split after a while
          builder.add(kFill, {out(cell(a))}, options);
          steps.push_back([=](auto& x) { x[a] = value; });
          break;
        case 7:
        case 8:
          builder.add(kCopy, {in(cell(a)), out(cell(b))}, options);
          steps.push_back([=](auto& x) { x[b] = x[a]; });
          break;
        default:
          builder.add(kIncrement, {inout(cell(a))}, options);
          steps.push_back([=](auto& x) { x[a] += value; });
      }
    }
    builder.derive_deps();
    const auto program = device_->prepare(builder.plan, {});
    const auto& units = static_cast<const cpu::CpuExecutable&>(*program).units().all;
    EXPECT_TRUE(std::ranges::any_of(units, [](const cpu::Unit& unit) { return unit.count > 1; }));
    std::array<uint32_t, kCells> expected{};
    for (int replay = 0; replay < 20; ++replay) {
      ASSERT_TRUE(run(*program));
      for (const auto& step : steps) step(expected);
      ASSERT_TRUE(std::ranges::equal(contents<uint32_t>(*device_, data), expected)) << "seed " << seed;
    }
    device_->release(live);
    device_->release(data);
  }
}

TEST_P(Runs, FailureNamesTheCommand) {
  constexpr uint32_t kCommands = 20, kBad = 12;
  const Allocation* data = cells(kCommands);
  PlanBuilder builder;
  for (uint32_t i = 0; i < kCommands; ++i) {
    builder.add(i == kBad ? kThrow : kIncrement, {inout(view(data, i * 4, 4))},
                {.constants = {i == kBad ? 0u : 1u, 0, 0, 0}, .label = "step " + std::to_string(i)});
  }
  const auto program = device_->prepare(builder.plan, {});
  try {
    run(*program);
    FAIL() << "expected DeviceError";
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    for (const char* part : {"command 12", "throw_test", "'step 12'", "row 0"})
      EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  for (uint32_t i = 0; i < kCommands; ++i)
    EXPECT_EQ(contents<uint32_t>(*device_, data)[i], i < kBad ? 1u : 0u) << "command " << i;
}

TEST_P(Runs, TimesAreThoseOfTheCommands) {
  constexpr uint32_t kCommands = 20, kSlow = 7;
  const Allocation* data = cells(kCommands);
  PlanBuilder builder;
  for (uint32_t i = 0; i < kCommands; ++i) {
    builder.add(kIncrement, {inout(view(data, i * 4, 4))}, {.constants = {1, i == kSlow ? 3000u : 0u, 0, 0}});
  }
  const auto program = device_->prepare(builder.plan, {.timestamps = true});
  std::vector<TickSpan> spans(kCommands);
  ASSERT_TRUE(run(*program));
  device_->timestamps(*program, spans);
  for (uint32_t i = 0; i < kCommands; ++i) {
    EXPECT_GE(spans[i].end, spans[i].begin);
    if (i > 0) {
      EXPECT_GE(spans[i].begin, spans[i - 1].end) << "one worker, one after the other";
    }
  }
  EXPECT_GE(static_cast<double>(spans[kSlow].end - spans[kSlow].begin) * device_->info.ns_per_tick, 3e6);
}

TEST_P(Runs, AFencePassesWhenAllBeforeItHasEnded) {
  const Allocation* data = cells(2);
  PlanBuilder builder;
  builder.fence();
  for (uint32_t i = 0; i < 2; ++i) builder.add(kIncrement, {inout(view(data, i * 4, 4))}, {});
  builder.fence();
  const auto program = device_->prepare(builder.plan, {.timestamps = true});
  std::array<TickSpan, 4> spans;
  ASSERT_TRUE(run(*program));
  device_->timestamps(*program, spans);
  const uint64_t first = std::min(spans[1].begin, spans[2].begin),
                 last = std::max(spans[1].end, spans[2].end);
  EXPECT_GT(first, 0u);
  for (const auto& [fence, passed] : {std::pair{spans[0], first}, {spans[3], last}}) {
    EXPECT_EQ(fence.begin, passed);
    EXPECT_EQ(fence.ready, passed);
    EXPECT_EQ(fence.end, passed);
  }
  PlanBuilder alone;
  alone.fence();
  const auto nothing = device_->prepare(alone.plan, {.timestamps = true});
  ASSERT_TRUE(run(*nothing));
  device_->timestamps(*nothing, std::span(spans).first(1));
  EXPECT_EQ(spans[0].end, 0u) << "nothing has begun";
}

/// Whether two commands of this kind make a run.
bool make_a_run(const Kernel& kernel, const std::initializer_list<Argument>& args,
                const PlanBuilder::Options& options = {}) {
  PlanBuilder builder;
  for (int i = 0; i < 2; ++i) builder.add(kernel, args, options);
  return cpu::CpuExecutable(builder.plan, {}).units().all.size() == 1;
}

TEST(CheapCommands, AreThoseThatAreBoundToFewBytes) {
  constexpr size_t kMost = (cpu::kMemberNs - 5) * 8;  // a call takes 5 ns, and 8 bytes one
  constexpr size_t kWorkers = 16, kWorkersScratch = 512;
  cpu::Memory memory("", size_t{1} << 20);
  const Allocation* data = memory.allocate({kMost + 8, "data"});
  const Allocation* scratch = memory.allocate({kWorkers * kWorkersScratch, "scratch"});
  EXPECT_TRUE(make_a_run(kIncrement, {inout(view(data, 0, kMost))}));
  EXPECT_FALSE(make_a_run(kIncrement, {inout(view(data, 0, kMost + 8))}));
  const BufferView head = view(data, 0, 400);
  EXPECT_TRUE(make_a_run(kCopy, {in(head), out(view(data, 400, kMost - 400))}));
  EXPECT_FALSE(make_a_run(kCopy, {in(head), out(view(data, 400, kMost - 392))})) << "all of them count";
  // Of scratch a worker touches its own part.
  const PlanBuilder::Options scratched{.launch = {1, 1, 1, kWorkersScratch}, .scratch = inout(view(scratch))};
  EXPECT_TRUE(make_a_run(kRecord, {inout(view(data, 0, kMost - kWorkersScratch))}, scratched));
  EXPECT_FALSE(make_a_run(kRecord, {inout(view(data, 0, kMost - kWorkersScratch + 8))}, scratched));
  // To be shared among workers, or prefetched by those that wait, a command stays alone.
  EXPECT_FALSE(make_a_run(kIncrement, {inout(head)}, {.launch = {2, 1, 1, 0}}));
  EXPECT_FALSE(make_a_run(kPrefetched, {sealed(head), out(view(data, 400, 8))}));
  EXPECT_TRUE(make_a_run(kPrefetched, {in(head), out(view(data, 400, 8))})) << "nothing may be loaded early";
}

/// Programs of commands that look cheap, since they write 8 bytes, and sleep; and the threads that ran them.
class Sleepers : public Runs {
 protected:
  static constexpr uint32_t kCommands = 8;

  std::unique_ptr<Executable> prepare(const ExecutableOptions& options) {
    for (uint32_t i = 0; i < kCommands; ++i)
      builder_.add(kThread, {out(view(threads_, i * 8, 8))}, {.constants = {0, 2000, 0, 0}});
    return device_->prepare(builder_.plan, options);
  }
  size_t workers() const {
    const auto ran = contents<uint64_t>(*device_, threads_);
    return std::set<uint64_t>(ran.begin(), ran.end()).size();
  }

  const Allocation* threads_ = device_->allocate({kCommands * 8, "threads"});
  PlanBuilder builder_;
};

TEST_P(Sleepers, ARunThatIsSlowIsShared) {
  const auto program = prepare({});
  const auto& cpu_program = static_cast<const cpu::CpuExecutable&>(*program);
  ASSERT_EQ(cpu_program.units().all.size(), 1u);
  uint32_t replays = 0;
  while (cpu_program.timed() || replays == 0) {
    ASSERT_LT(++replays, 50u);
    ASSERT_TRUE(run(*program));
    if (cpu_program.timed()) {
      EXPECT_EQ(workers(), 1u) << "a run belongs to one worker";
    }
  }
  if (GetParam() == 1) return;  // walks no units
  EXPECT_EQ(cpu_program.units().all.size(), kCommands);
  size_t most = workers();
  for (int i = 0; i < 200 && most == 1; ++i) {
    ASSERT_TRUE(run(*program));
    most = workers();
  }
  EXPECT_GT(most, 1u);
}

TEST_P(Sleepers, WhatRunsOnceHasNoRuns) {
  const auto program = prepare({.once = true});
  EXPECT_EQ(static_cast<const cpu::CpuExecutable&>(*program).units().all.size(), kCommands);
  EXPECT_TRUE(run(*program));
}

TEST_P(Sleepers, WhatIsPlacedHasNoRuns) {
  std::vector<uint32_t> placement;
  for (uint32_t i = 0; i < kCommands; ++i) placement.push_back(i % GetParam());
  const auto program = prepare({.placement = placement});
  EXPECT_EQ(static_cast<const cpu::CpuExecutable&>(*program).units().all.size(), kCommands);
  ASSERT_TRUE(run(*program));
  EXPECT_EQ(workers(), std::min(kCommands, GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Workers, Runs, ::testing::Values(1u, 2u, 4u, 16u));
INSTANTIATE_TEST_SUITE_P(Workers, Sleepers, ::testing::Values(1u, 2u, 4u));

}  // namespace
}  // namespace refrain::backend::testing
