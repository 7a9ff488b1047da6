// Splitting: where the cut falls, what each part holds, and the same bits from both in a row as from the
// whole.
#include "refrain/graph/split.h"

#include <gtest/gtest.h>

#include <numeric>

#include "refrain/device/cpu/cpu_device.h"
#include "refrain/device/validate/validate_device.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using graph::SplitPlan;

/// A chain over one buffer with `commands` commands; true in `fences`: a fence behind it.
device::Plan chain(Device& device, size_t commands, const std::vector<bool>& fences = {}) {
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {4}), b = device.buffer(DType::u32, {4});
  for (size_t i = 0; i < commands; ++i) {
    dispatch(encoder, kUpdate, std::array{Operand(a), Operand(b)}, MixConstants{1, 4, 0, 4});
    if (i < fences.size() && fences[i]) encoder.barrier();
  }
  return graph::make_plan(encoder.finish(), kKernels, device.info(), {}).first;
}

size_t kernels(const device::Plan& plan) {
  return static_cast<size_t>(
      std::ranges::count(plan.commands, device::CommandKind::kernel, &device::Command::kind));
}

TEST(Split, TheFirstPartIsATenthButNotLessThan64) {
  Device device = null_device();
  for (const auto& [commands, first] :
       {std::pair<size_t, size_t>{65, 64}, {640, 64}, {649, 64}, {650, 65}, {1000, 100}}) {
    const SplitPlan split = graph::split(chain(device, commands));
    ASSERT_EQ(split.parts.size(), 2u) << commands;
    EXPECT_EQ(split.parts[0].commands.size(), first) << commands;
    EXPECT_EQ(split.parts[1].commands.size(), commands - first) << commands;
  }
}

TEST(Split, NoEmptyPart) {
  Device device = null_device();
  for (const size_t commands : {0u, 1u, 63u, 64u}) {
    const SplitPlan split = graph::split(chain(device, commands));
    ASSERT_EQ(split.parts.size(), 1u) << commands;
    EXPECT_EQ(split.parts[0].commands.size(), commands);
    EXPECT_TRUE(split.crossing.empty());
  }
  // Only a fence would be left.
  EXPECT_EQ(graph::split(chain(device, 3, {false, false, true}), 3).parts.size(), 1u);
}

TEST(Split, FencesCountNothingAndTheOneAtTheCutIsDropped) {
  Device device = null_device();
  const device::Plan plan = chain(device, 6, {true, true, false, false, true});  // kernels 0 2 4 5 6 8
  const SplitPlan inside = graph::split(plan, 3);
  EXPECT_EQ(inside.parts[0].commands.size(), 5u);
  EXPECT_EQ(kernels(inside.parts[0]), 3u);
  EXPECT_EQ(inside.parts[1].commands.size(), 4u);
  const SplitPlan at = graph::split(plan, 2);
  EXPECT_EQ(at.parts[0].commands.size(), 3u);
  EXPECT_EQ(kernels(at.parts[0]), 2u);
  EXPECT_EQ(at.parts[1].commands.size(), 5u);
  EXPECT_EQ(at.parts[1].commands[0].kind, device::CommandKind::kernel);
  EXPECT_EQ(at.crossing, (std::vector<std::pair<uint32_t, uint32_t>>{{3, 4}}));
}

TEST(Split, EdgesAndLevelsOfTheParts) {
  Device device = null_device();
  const device::Plan plan = chain(device, 5);
  const SplitPlan split = graph::split(plan, 2);
  EXPECT_EQ(split.crossing, (std::vector<std::pair<uint32_t, uint32_t>>{{1, 2}}));
  EXPECT_EQ(split.parts[0].deps, std::vector<uint32_t>{0});
  EXPECT_EQ(split.parts[1].deps, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(split.parts[1].commands[0].deps.count, 0u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(split.parts[1].commands[i].level, i + 1);
}

/// Every edge of the whole is in a part, or crosses.
TEST(Split, NoEdgeIsLost) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    Device device = null_device();
    RandomGraph random(device, 8800 + seed, 60);
    const device::Plan plan = graph::make_plan(random.finish(), kKernels, device.info(), {}).first;
    const SplitPlan split = graph::split(plan, 1 + seed % 12);
    ASSERT_EQ(split.parts.size(), 2u) << seed;
    // Each part has the order of its own conflicts, no more and no less.
    for (const device::Plan& part : split.parts) {
      ASSERT_TRUE(graph::check_order(part).empty()) << seed;
      EXPECT_EQ(stored_order(part), closure(accesses(part))) << seed;
      EXPECT_EQ(part.arena_bytes, plan.arena_bytes);
      const std::vector<uint32_t> expected = levels(accesses(part), closure(accesses(part)));
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(part.commands[i].level, expected[i]) << seed;
    }
    const auto first = static_cast<uint32_t>(split.parts[0].commands.size());
    const auto second = static_cast<uint32_t>(plan.commands.size() - split.parts[1].commands.size());
    Pairs whole, parts(split.crossing.begin(), split.crossing.end());
    EXPECT_EQ(parts.size(), split.crossing.size());
    for (const auto& [earlier, later] : parts) {
      EXPECT_LT(earlier, second);
      EXPECT_GE(later, second);
    }
    for (uint32_t i = 0; i < plan.commands.size(); ++i) {
      if (i >= first && i < second) continue;  // a dropped fence
      for (uint32_t d = 0; d < plan.commands[i].deps.count; ++d)
        whole.emplace(plan.deps[plan.commands[i].deps.first + d], i);
    }
    for (const uint32_t offset : {0u, second}) {
      const device::Plan& part = split.parts[offset != 0];
      for (uint32_t i = 0; i < part.commands.size(); ++i) {
        for (uint32_t d = 0; d < part.commands[i].deps.count; ++d)
          parts.emplace(part.deps[part.commands[i].deps.first + d] + offset, i + offset);
      }
    }
    EXPECT_EQ(parts, whole) << seed;
  }
}

/// Those without scratch, whose sizes are too odd for a device that checks.
constexpr device::Kernel kChecked[] = {kKernels[2], kKernels[3], kKernels[4]};

/// Both parts on a CPU device that checks its contract, twice in a row.
TEST(Split, SameBitsOnTheCpu) {
  device::CpuOptions cpu;
  cpu.threads = 2;
  const std::shared_ptr<device::Backend> backend = device::make_validate(device::make_cpu(cpu, kChecked));
  const device::Allocation* arena = backend->allocate({.bytes = 1 << 20, .host = nullptr, .label = {}});
  for (uint32_t seed = 0; seed < 40; ++seed) {
    Device device(backend, {}, {});
    RandomGraph random(device, 9900 + seed, 60);
    const device::Plan plan = graph::make_plan(random.finish(), kChecked, device.info(), {}).first;
    const SplitPlan split = graph::split(plan, 1 + seed % 12);
    ASSERT_EQ(split.parts.size(), 2u);
    ASSERT_LE(plan.arena_bytes, arena->bytes);
    std::vector<std::unique_ptr<device::Program>> programs;
    for (const device::Plan& part : split.parts) {
      device::PrepareOptions options;
      options.arena = {arena, 0, arena->bytes};
      programs.push_back(backend->prepare(part, options));
    }
    for (int round = 0; round < 2; ++round) {
      random.reset();
      device::Point last;
      for (const auto& program : programs) last = backend->submit({program.get(), {}, {}});
      ASSERT_TRUE(backend->wait(last, std::chrono::seconds(60)));
      ASSERT_TRUE(random.as_recorded()) << "seed " << seed;
    }
  }
  backend->release(arena);
}

}  // namespace
}  // namespace refrain::null_tests
