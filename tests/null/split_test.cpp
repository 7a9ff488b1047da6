// Splitting: where the cut falls, what each part holds, and the same bits from both in a row as from the
// whole.
#include "refrain/graph/split.h"

#include <gtest/gtest.h>

#include <numeric>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/error.h"
#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using graph::SplitPlan;

/// A chain over one buffer with `commands` commands; true in `fences`: a fence behind it.
backend::PlanData chain(Device& device, size_t commands, const std::vector<bool>& fences = {}) {
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {4}), b = device.buffer(DType::u32, {4});
  for (size_t i = 0; i < commands; ++i) {
    dispatch(encoder, kUpdate, std::array{Operand(a), Operand(b)}, MixConstants{1, 4, 0, 4});
    if (i < fences.size() && fences[i]) encoder.barrier();
  }
  return graph::make_plan(encoder.finish(), kKernels, device.info(), {}).first;
}

size_t kernels(const backend::PlanData& plan) {
  return static_cast<size_t>(
      std::ranges::count(plan.commands, backend::CommandKind::kernel, &backend::PlanCommand::kind));
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
  const backend::PlanData plan = chain(device, 6, {true, true, false, false, true});  // kernels 0 2 4 5 6 8
  const SplitPlan inside = graph::split(plan, 3);
  EXPECT_EQ(inside.parts[0].commands.size(), 5u);
  EXPECT_EQ(kernels(inside.parts[0]), 3u);
  EXPECT_EQ(inside.parts[1].commands.size(), 4u);
  const SplitPlan at = graph::split(plan, 2);
  EXPECT_EQ(at.parts[0].commands.size(), 3u);
  EXPECT_EQ(kernels(at.parts[0]), 2u);
  EXPECT_EQ(at.parts[1].commands.size(), 5u);
  EXPECT_EQ(at.parts[1].commands[0].kind, backend::CommandKind::kernel);
  EXPECT_EQ(at.crossing, (std::vector<std::pair<uint32_t, uint32_t>>{{3, 4}}));
}

TEST(Split, EdgesAndLevelsOfTheParts) {
  Device device = null_device();
  const backend::PlanData plan = chain(device, 5);
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
    const backend::PlanData plan = graph::make_plan(random.finish(), kKernels, device.info(), {}).first;
    const SplitPlan split = graph::split(plan, 1 + seed % 12);
    ASSERT_EQ(split.parts.size(), 2u) << seed;
    // Each part has the order of its own conflicts, no more and no less.
    for (const backend::PlanData& part : split.parts) {
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
      const backend::PlanData& part = split.parts[offset != 0];
      for (uint32_t i = 0; i < part.commands.size(); ++i) {
        for (uint32_t d = 0; d < part.commands[i].deps.count; ++d)
          parts.emplace(part.deps[part.commands[i].deps.first + d] + offset, i + offset);
      }
    }
    EXPECT_EQ(parts, whole) << seed;
  }
}

/// Those without scratch, whose sizes are too odd for a device that checks.
constexpr backend::Kernel kChecked[] = {kKernels[2], kKernels[3], kKernels[4], kKernels[5]};

/// Both parts on a CPU device that checks its contract, twice in a row.
TEST(Split, SameBitsOnTheCpu) {
  backend::CpuOptions cpu;
  cpu.threads = 2;
  const std::shared_ptr<backend::Backend> backend = backend::make_validate(backend::make_cpu(cpu, kChecked));
  const backend::Allocation* arena = backend->allocate({.bytes = 1 << 20});
  for (uint32_t seed = 0; seed < 40; ++seed) {
    Device device(backend, {}, {});
    RandomGraph random(device, 9900 + seed, 60);
    const backend::PlanData plan = graph::make_plan(random.finish(), kChecked, device.info(), {}).first;
    const SplitPlan split = graph::split(plan, 1 + seed % 12);
    ASSERT_EQ(split.parts.size(), 2u);
    ASSERT_LE(plan.arena_bytes, arena->bytes);
    std::vector<std::unique_ptr<backend::Executable>> programs;
    for (const backend::PlanData& part : split.parts) {
      backend::ExecutableOptions options;
      options.arena = {arena, 0, arena->bytes};
      programs.push_back(backend->prepare(part, options));
    }
    for (int round = 0; round < 2; ++round) {
      random.reset();
      backend::Point last;
      for (const auto& program : programs) last = backend->submit({program.get(), {}, {}});
      ASSERT_TRUE(backend->wait(last, std::chrono::seconds(60)));
      ASSERT_TRUE(random.as_recorded()) << "seed " << seed;
    }
  }
  backend->release(arena);
}

/// Layers of a norm, two products and their blend, each a group; every second one followed by a plain command.
struct Layers {
  static constexpr uint32_t kLayers = 9;

  explicit Layers(const std::shared_ptr<backend::Backend>& backend = cpu())
      : backend_(backend),
        device_(backend, {}, {}),
        x_(device_.buffer(DType::u32, {4, 6})),
        log_(device_.buffer(DType::u32, {24})),
        plan_(make()) {}

  static std::shared_ptr<backend::Backend> cpu() {
    backend::CpuOptions options;
    options.threads = 2;
    return backend::make_validate(backend::make_cpu(options, fusible_kernels()));
  }

  backend::PlanData make() {
    CommandEncoder e = device_.encoder();
    Operand last = x_;
    std::vector<Temp> temps;
    temps.reserve(4 * kLayers);  // operands point to them
    const auto temp = [&] { return Operand(temps.emplace_back(e.temp(DType::u32, {4, 6}))); };
    for (uint32_t i = 0; i < kLayers; ++i) {
      e.label("layer " + std::to_string(i));
      const Operand h = temp(), a = temp(), b = temp(), sum = temp();
      dispatch(e, kNorm, std::array{last, h}, RowConstants{7 + i, 6, 1, 0});
      for (const Operand& y : {a, b})
        dispatch(e, kProject, std::array{h, Operand(log_), y}, RowConstants{6, 6, 6, 6});
      dispatch(e, kBlend, std::array{a, b, sum}, RowConstants{7, 6, 6, 0});
      if (i % 2 == 1) dispatch(e, kUpdate, std::array{sum, Operand(log_)}, MixConstants{1, 24, 0, 24});
      last = sum;
    }
    dispatch(e, kBlend, std::array{last, last, Operand(x_)}, RowConstants{7, 6, 6, 0});
    PlanOptions options;
    options.check = true;
    return graph::make_plan(e.finish(), fusible_kernels(), device_.info(), options).first;
  }

  /// What x and the log hold after `plans` in a row.
  std::vector<uint32_t> run(std::span<const backend::PlanData> plans, bool fails = false) {
    std::iota(x_.span<uint32_t>().begin(), x_.span<uint32_t>().end(), 1);
    std::ranges::fill(log_.span<uint32_t>(), 3);
    const Buffer arena = device_.buffer(DType::u8, {static_cast<int64_t>(plan_.arena_bytes) + 64});
    backend::ExecutableOptions options;
    options.arena = arena.device_view();
    std::vector<std::unique_ptr<backend::Executable>> programs;
    backend::Point last;
    for (const backend::PlanData& plan : plans) {
      programs.push_back(backend_->prepare(plan, options));
      last = backend_->submit({programs.back().get(), {}, {}});
    }
    const auto wait = [&] { EXPECT_TRUE(backend_->wait(last, std::chrono::seconds(60))); };
    if (fails) {
      EXPECT_THROW(wait(), DeviceError);
    } else {
      wait();
    }
    std::vector<uint32_t> values(x_.span<uint32_t>().begin(), x_.span<uint32_t>().end());
    values.insert(values.end(), log_.span<uint32_t>().begin(), log_.span<uint32_t>().end());
    return values;
  }

  std::shared_ptr<backend::Backend> backend_;
  Device device_;
  Buffer x_, log_;
  backend::PlanData plan_;
};

class SplitGroups : public ::testing::Test, protected Layers {};

/// All that a command is, without its edges.
std::vector<std::string> lines(const backend::PlanData& plan) {
  std::vector<std::string> result;
  for (const backend::PlanCommand& command : plan.commands) {
    std::string line = backend::title(plan, command) + " of " + plan.labels[command.label];
    for (uint32_t a = 0; a < command.args.count; ++a) {
      const backend::BufferView& view = plan.args[command.args.first + a].view;
      line += ", " + backend::argument_title(plan, command, a) + " " + std::to_string(view.offset_bytes) +
              " " + std::to_string(view.bytes);
    }
    if (command.kind == backend::CommandKind::fused_group) {
      const backend::FusedGroup& group = plan.groups[command.group];
      for (uint32_t m = 0; m < group.members.count; ++m) {
        const backend::FusedMember& member = plan.members[group.members.first + m];
        line += "; component " + std::to_string(member.component) + " private " +
                std::to_string(member.private_arg) + " constants " + std::to_string(member.constants.first);
      }
      for (uint32_t c = 0; c < group.components.count; ++c)
        line += "; units " + std::to_string(plan.components[group.components.first + c].units);
    }
    result.push_back(line);
  }
  return result;
}

TEST_F(SplitGroups, PartsKeepThemWhole) {
  ASSERT_EQ(plan_.groups.size(), kLayers);
  const std::vector<uint32_t> whole = run(std::array{plan_});
  for (size_t first = 1; first < plan_.commands.size(); ++first) {
    const SplitPlan split = graph::split(plan_, first);
    ASSERT_EQ(split.parts.size(), 2u);
    std::vector<std::string> both = lines(split.parts[0]);
    EXPECT_EQ(both.size(), first);
    std::ranges::copy(lines(split.parts[1]), std::back_inserter(both));
    EXPECT_EQ(both, lines(plan_));
    for (const backend::PlanData& part : split.parts) {
      EXPECT_TRUE(graph::check_order(part).empty());
      EXPECT_EQ(stored_order(part), closure(accesses(part)));
    }
    EXPECT_EQ(run(split.parts), whole) << first;
  }
}

TEST_F(SplitGroups, AFailureLeavesWhatTheCommandsBeforeItDid) {
  for (uint32_t commands = 1; commands < plan_.commands.size(); ++commands) {
    const std::vector<uint32_t> expected = run(std::array{graph::split(plan_, commands).parts[0]});
    backend::CpuOptions options;
    options.threads = 2;
    backend::FaultPlan faults;
    faults.command = commands + 1;
    Layers other(backend::make_fault(backend::make_cpu(options, fusible_kernels()), faults));
    EXPECT_EQ(other.run(std::array{other.plan_}, /*fails=*/true), expected) << commands;
  }
}

}  // namespace
}  // namespace refrain::null_tests
