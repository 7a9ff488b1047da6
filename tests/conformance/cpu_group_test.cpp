// How the CPU walks a group: what members keep for a block of rows, what they share, what they load early.
#include "refrain/backend/cpu/fused_group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/device.h"
#include "refrain/device/encoder.h"

namespace refrain::backend::testing {
namespace {

constexpr uint32_t kRows = 10, kBlock = 4, kUnits = 6, kGranule = 3;  // the last block has two rows

struct Shapes {
  uint32_t rows = kRows;
  uint32_t units = kUnits;
};

std::atomic<uint32_t> prologues{0}, prefetches{0}, totals{0};

uint32_t* scratch_of(const TileArgs& args) { return reinterpret_cast<uint32_t*>(args.scratch); }

// spread: output[r, u] = input[r, 0] + u, with scratch that other members may have as well.
void spread(const TileArgs& args, uint32_t row, uint32_t row_end, uint32_t unit, uint32_t unit_end) {
  for (; row < row_end; ++row) {
    for (uint32_t u = unit; u < unit_end; ++u) {
      std::fill_n(scratch_of(args), 64, 0xDDDDDDDDu);
      args.arg<uint32_t>(2)[row * kUnits + u] = args.arg<uint32_t>(0)[row * kUnits] + u;
    }
  }
}
// turn: output[r, u] = input[r, u] + 1000 tags[r]; the product is kept for all units of a row.
void turn_prologue(const TileArgs& args, uint32_t row, uint32_t row_end) {
  ++prologues;
  for (uint32_t r = row; r < row_end; ++r) scratch_of(args)[r - row] = 1000 * args.arg<uint32_t>(1)[r];
}
void turn(const TileArgs& args, uint32_t row, uint32_t row_end, uint32_t unit, uint32_t unit_end) {
  for (uint32_t r = row; r < row_end; ++r) {
    for (uint32_t u = unit; u < unit_end; ++u)
      args.arg<uint32_t>(2)[r * kUnits + u] =
          args.arg<uint32_t>(0)[r * kUnits + u] + scratch_of(args)[r - row];
  }
}
// total: output[r, u] = the sum of input[r].
void total(const TileArgs& args, uint32_t row, uint32_t row_end, uint32_t, uint32_t) {
  for (uint32_t r = row; r < row_end; ++r) {
    const uint32_t* input = args.arg<uint32_t>(0) + r * kUnits;
    std::fill_n(args.arg<uint32_t>(1) + r * kUnits, kUnits, std::accumulate(input, input + kUnits, 0u));
    ++totals;
  }
}
void total_tiles(const TileArgs& args, uint32_t begin, uint32_t end) { total(args, begin, end, 0, 1); }
void spread_tiles(const TileArgs& args, uint32_t begin, uint32_t end) { spread(args, begin, end, 0, kUnits); }
void turn_tiles(const TileArgs& args, uint32_t begin, uint32_t end) {
  for (uint32_t r = begin; r < end; ++r) {
    turn_prologue(args, r, r + 1);
    turn(args, r, r + 1, 0, kUnits);
  }
}
void count_prefetch(const TileArgs& args) {
  volatile uint32_t first = args.arg<uint32_t>(1)[0];
  (void)first;
  ++prefetches;
}

constexpr ArgumentSpec kSpreadArgs[] = {
    {.name = "input", .access = Access::in, .rows = true},
    {.name = "weight", .access = Access::in},
    {.name = "output", .access = Access::out, .rows = true, .units = true}};
constexpr ArgumentSpec kTurnArgs[] = {{.name = "input", .access = Access::in, .rows = true, .units = true},
                                      {.name = "tags", .access = Access::in, .rows = true},
                                      {.name = "output", .access = Access::out, .rows = true, .units = true}};

constexpr ArgumentSpec kTotalArgs[] = {
    {.name = "input", .access = Access::in, .rows = true, .units = true},
    {.name = "output", .access = Access::out, .rows = true, .units = true}};

uint32_t units(const OpCall& call) { return call.constants_as<Shapes>().units; }
Cost cost(const OpCall&) { return {0, uint64_t{kRows} * kUnits * 65536}; }

const OpSchema kSpreadOp{.name = "spread",
                         .args = kSpreadArgs,
                         .constants_bytes = sizeof(Shapes),
                         .check = [](const OpCall&) {},
                         .cost = cost,
                         .iteration = Iteration::contraction,
                         .units = units};
const OpSchema kTurnOp{.name = "turn",
                       .args = kTurnArgs,
                       .constants_bytes = sizeof(Shapes),
                       .check = [](const OpCall&) {},
                       .cost = cost,
                       .iteration = Iteration::per_head,
                       .units = units};

const OpSchema kTotalOp{.name = "total",
                        .args = kTotalArgs,
                        .cost = [](const OpCall&) { return Cost{}; },
                        .iteration = Iteration::row_reduction,
                        .units = [](const OpCall&) { return 1u; }};

constexpr TileKernel kSpreadTiles{.prefetch = count_prefetch, .tiles = spread_tiles, .region = spread};
constexpr TileKernel kTurnTiles{.tiles = turn_tiles, .region = turn, .rows_prologue = turn_prologue};

const Kernel kKernels[] = {{.name = "spread_test",
                            .op = &kSpreadOp,
                            .numerics = "exact",
                            .prefetches = 0b10,
                            .accepts = [](const OpCall&) { return true; },
                            .launch =
                                [](const OpCall&, const DeviceInfo&) {
                                  return Launch{
                                      .rows = kRows, .rows_per_block = kBlock, .scratch_bytes = 256};
                                },
                            .entry = &kSpreadTiles,
                            .regions = true,
                            .unit_granule = kGranule},
                           {.name = "turn_test",
                            .op = &kTurnOp,
                            .numerics = "exact",
                            .accepts = [](const OpCall&) { return true; },
                            .launch =
                                [](const OpCall&, const DeviceInfo&) {
                                  return Launch{.rows = kRows, .scratch_bytes = 64, .row_scratch_bytes = 4};
                                },
                            .entry = &kTurnTiles,
                            .regions = true,
                            .keeps_rows = true}};

/// The second of them as a user's.
UserKernel turn_kernel() {
  return {.name = "turn_test", .op = &kTurnOp, .launch = kKernels[1].launch, .entry = kTurnTiles};
}

/// Workers, and whether the memory is out of the host's reach.
class CpuGroup : public ::testing::TestWithParam<std::tuple<uint32_t, bool>> {
 protected:
  static Device open() {
    CpuOptions options;
    options.threads = workers();
    std::unique_ptr<Backend> backend = make_cpu(options, std::span(kKernels, 1));
    if (std::get<1>(GetParam())) backend = make_remote(std::move(backend));
    return Device(make_validate(std::move(backend)), {}, {});
  }
  static uint32_t workers() { return std::get<0>(GetParam()); }

  Device device = open();
};

TEST_P(CpuGroup, WhatAMemberKeepsIsOfItsBlockAndItsReplay) {
  device.kernels().add(turn_kernel());
  const Buffer live = device.buffer(DType::u32, {1});
  const auto buffer = [&](const Shape& shape) {
    return device.buffer(DType::u32, shape).with_live_rows(live);
  };
  const Buffer x = buffer({kRows, kUnits}), weight = device.buffer(DType::u32, {1});
  const Buffer tags[2] = {buffer({kRows}), buffer({kRows})};
  const Buffer outputs[2] = {buffer({kRows, kUnits}), buffer({kRows, kUnits})};
  CommandEncoder encoder = device.encoder();
  for (int i = 0; i < 2; ++i) {
    const Temp y = encoder.temp(DType::u32, {kRows, kUnits}, live);
    dispatch(encoder, kSpreadOp, std::array<Operand, 3>{x, weight, y}, Shapes{});
    dispatch(encoder, kTurnOp, std::array<Operand, 3>{y, tags[i], outputs[i]}, Shapes{});
  }
  auto [plan, report] = device.plan(encoder.finish(), {.most_fused_rows = kRows, .check = true});
  ASSERT_EQ(report.commands, 1u);
  ASSERT_EQ(plan.data().components.size(), 2u);
  ASSERT_EQ(plan.data().commands[0].launch.tiles_per_block, 2 * kUnits / kGranule)
      << "the work asks for a unit a tile, the kernel for more";
  const refrain::Program program = device.prepare(plan);

  uint32_t step = 0;
  for (const uint32_t count : {kRows, 1u, 5u, 0u, 8u, kRows + 3, 4u, 9u, kRows, kRows}) {
    ++step;
    device.write(live, std::array{count});
    std::array<uint32_t, kRows * kUnits> values{};
    for (uint32_t r = 0; r < kRows; ++r) values[r * kUnits] = 100 * step + 10 * r;
    device.write(x, values);
    for (uint32_t i = 0; i < 2; ++i) {
      for (uint32_t r = 0; r < kRows; ++r)
        device.write(tags[i].slice(r, 1), std::array{step * 7 + r * 3 + i});
      values.fill(1);
      device.write(outputs[i], values);
    }
    const uint32_t before = prologues;
    device.wait(device.submit(program));
    const uint32_t rows = std::min(count, kRows), blocks = (rows + kBlock - 1) / kBlock;
    EXPECT_GE(prologues - before, 2 * blocks);
    EXPECT_LE(prologues - before, 2 * blocks * workers()) << "once a worker and block for each member";
    for (uint32_t i = 0; i < 2; ++i) {
      const std::vector<uint32_t> found = device.read<uint32_t>(outputs[i]);
      for (uint32_t r = 0; r < kRows; ++r) {
        for (uint32_t u = 0; u < kUnits; ++u) {
          const uint32_t value = 100 * step + 10 * r + u + 1000 * (step * 7 + r * 3 + i);
          ASSERT_EQ(found[r * kUnits + u], r < rows ? value : 1u)
              << "step " << step << " row " << r << " unit " << u;
        }
      }
    }
  }
}

TEST_P(CpuGroup, AValueIsComputedOnceABlockByWhoNeedsIt) {
  device.kernels().add(
      {.name = "total_test", .op = &kTotalOp, .entry = {.tiles = total_tiles, .region = total}});
  const auto buffer = [&] { return device.buffer(DType::u32, {kRows, kUnits}); };
  const Buffer x = buffer(), weight = device.buffer(DType::u32, {1}), outputs[2] = {buffer(), buffer()};
  CommandEncoder encoder = device.encoder();
  const Temp sums = encoder.temp(DType::u32, {kRows, kUnits});
  encoder.dispatch({&kTotalOp, std::array<Operand, 2>{x, sums}, {}});
  for (const Buffer& output : outputs)
    dispatch(encoder, kSpreadOp, std::array<Operand, 3>{sums, weight, output}, Shapes{});
  const auto [plan, report] = device.plan(encoder.finish(), {.most_fused_rows = kRows});
  ASSERT_EQ(title(plan.data(), plan.data().commands[0]), "total+spread*2");
  ASSERT_EQ(plan.data().commands[0].launch.tiles_per_block, 2 * kUnits / kGranule);
  const refrain::Program program = device.prepare(plan);
  for (uint32_t step = 1; step <= 3; ++step) {
    std::array<uint32_t, kRows * kUnits> values{};
    for (uint32_t i = 0; i < values.size(); ++i) values[i] = step * i;
    device.write(x, values);
    const uint32_t before = totals;
    device.wait(device.submit(program));
    EXPECT_GE(totals - before, kRows);
    EXPECT_LE(totals - before, kRows * workers());
    for (const Buffer& output : outputs) {
      const std::vector<uint32_t> found = device.read<uint32_t>(output);
      for (uint32_t i = 0; i < values.size(); ++i) {
        const uint32_t* row = values.data() + i / kUnits * kUnits;
        ASSERT_EQ(found[i], std::accumulate(row, row + kUnits, 0u) + i % kUnits) << i;
      }
    }
  }
}

TEST(CpuGroupOfUsers, ALaunchOfOtherRowsIsNoMember) {
  Device device(make_validate(make_cpu({}, std::span(kKernels, 1))), {}, {});
  UserKernel turn = turn_kernel();
  turn.launch = [](const OpCall&, const DeviceInfo&) {
    return Launch{
        .rows = kRows * kUnits, .rows_per_block = kUnits, .scratch_bytes = 64, .row_scratch_bytes = 4};
  };
  device.kernels().add(turn);
  CommandEncoder encoder = device.encoder();
  const Temp y = encoder.temp(DType::u32, {kRows, kUnits});
  const Buffer x = device.buffer(DType::u32, {kRows, kUnits}), weight = device.buffer(DType::u32, {1});
  const Buffer tags = device.buffer(DType::u32, {kRows}), output = device.buffer(DType::u32, {kRows, kUnits});
  dispatch(encoder, kSpreadOp, std::array<Operand, 3>{x, weight, y}, Shapes{});
  dispatch(encoder, kTurnOp, std::array<Operand, 3>{y, tags, output}, Shapes{});
  const PlanReport report = device.plan(encoder.finish(), {.most_fused_rows = kRows}).second;
  EXPECT_EQ(report.commands, 2u);
  ASSERT_EQ(report.misses.size(), 1u);
  EXPECT_NE(report.misses[0].find("kernel turn_test walks 60 rows, not the 10 of its arguments"),
            std::string::npos)
      << report.misses[0];
}

INSTANTIATE_TEST_SUITE_P(Workers, CpuGroup,
                         ::testing::Combine(::testing::Values(1u, 2u, 4u), ::testing::Bool()));

TEST(CpuPrefetch, OnlyWhenAllThatItLoadsIsSealed) {
  PlanData plan;
  const Allocation memory{.id = 1, .bytes = 64};
  plan.args.resize(3);
  for (Argument& argument : plan.args) argument.view = {&memory, 0, 64};
  const Range args{0, 3};
  Kernel kernel = kKernels[0];
  EXPECT_FALSE(cpu::may_prefetch(plan, kernel, args));
  plan.args[1].sealed = true;
  EXPECT_TRUE(cpu::may_prefetch(plan, kernel, args));
  kernel.prefetches = 0b11;
  EXPECT_FALSE(cpu::may_prefetch(plan, kernel, args)) << "argument 0 may still be written";
  plan.args[0].view = {};
  EXPECT_TRUE(cpu::may_prefetch(plan, kernel, args)) << "what is not bound is not loaded";
  kernel.prefetches = 0;
  EXPECT_FALSE(cpu::may_prefetch(plan, kernel, args));
  kernel = kKernels[1];
  kernel.prefetches = 0b10;
  EXPECT_FALSE(cpu::may_prefetch(plan, kernel, args)) << "it has no function for it";
}

TEST(CpuPrefetch, MembersOfAGroupLoadTheirWeights) {
  PlanData plan;
  const Allocation memory{.id = 1, .bytes = 64};
  std::array<uint32_t, 16> values{};
  std::vector<void*> addresses(6, values.data());
  plan.args.resize(6);
  for (Argument& argument : plan.args) argument.view = {&memory, 0, 64};
  plan.constants.resize(32);
  plan.components = {{.units = 1}};
  plan.groups = {{.members = {0, 2}, .components = {0, 1}}};
  for (const uint32_t first : {0u, 3u}) {
    FusedMember& member = plan.members.emplace_back();
    member.kernel = &kKernels[0];
    member.args = {first, 3};
    member.constants = {first / 3 * 16, sizeof(Shapes)};
    member.component = 0;
  }
  PlanCommand command;
  command.kind = CommandKind::fused_group;
  command.group = 0;
  for (uint32_t sealed = 0; sealed <= 2; ++sealed) {
    if (sealed > 0) plan.args[sealed == 1 ? 4 : 1].sealed = true;
    const cpu::GroupWalk walk = cpu::make_group_walk(plan, command, addresses.data(), plan.constants.data());
    EXPECT_EQ(may_prefetch(walk), sealed > 0);
    const uint32_t before = prefetches;
    cpu::group_prefetch({nullptr, reinterpret_cast<const std::byte*>(&walk), nullptr, kRows});
    EXPECT_EQ(prefetches - before, sealed);
  }
}

}  // namespace
}  // namespace refrain::backend::testing
