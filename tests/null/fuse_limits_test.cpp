// The fuse pass on graphs that are empty, long, wide or of mixed dtypes. Those of thousands of commands would not
// end in anyone's time if what it costs to form a group grew with the graph.
#include <gtest/gtest.h>

#include <functional>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/fuse.h"
#include "refrain/graph/make_plan.h"
#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

constexpr int64_t kRows = 4, kWidth = 6;
constexpr uint32_t kMany = 10000;

class FuseLimits : public ::testing::Test {
 protected:
  FuseLimits()
      : device_(backend::make_null(fusible_kernels(), 0, 1), {}, {}),
        x_(device_.buffer(DType::u32, {kRows, kWidth})),
        weight_(device_.buffer(DType::u32, {1})) {}

  Temp temp(CommandEncoder& e, DType dtype = DType::u32) { return e.temp(dtype, {kRows, kWidth}); }
  void project(CommandEncoder& e, const Operand& input, const Operand& output) {
    dispatch(e, kProject, std::array{input, Operand(weight_), output}, RowConstants{7, 6, 6, 6});
  }
  void blend(CommandEncoder& e, const Operand& a, const Operand& b, const Operand& output) {
    dispatch(e, kBlend, std::array{a, b, output}, RowConstants{7, 6, 6, 0});
  }

  PlanReport plan(const std::function<void(CommandEncoder&)>& record, bool check = true) {
    CommandEncoder encoder = device_.encoder();
    record(encoder);
    PlanOptions options;
    options.check = check;
    return device_.plan(encoder.finish(), options).second;
  }

  using Names = std::vector<std::string>;
  Device device_;
  Buffer x_, weight_;
};

TEST_F(FuseLimits, NothingFencesAndOneCommand) {
  const PlanReport nothing = plan([](CommandEncoder&) {});
  EXPECT_EQ(nothing.commands, 0u);
  EXPECT_EQ(nothing.recorded_levels, 0u);
  const PlanReport fences = plan([](CommandEncoder& e) {
    e.barrier();
    e.barrier();
  });
  EXPECT_EQ(fences.commands, 0u);
  EXPECT_EQ(fences.fused_levels, 0u);
  const PlanReport one = plan([&](CommandEncoder& e) { project(e, x_, temp(e)); });
  EXPECT_EQ(one.commands, 1u);
  EXPECT_EQ(one.levels, 1u);
  for (const PlanReport& report : {nothing, fences, one}) {
    EXPECT_TRUE(report.fusions.empty());
    EXPECT_TRUE(report.misses.empty());
  }
}

TEST_F(FuseLimits, AChainOfThousands) {
  const PlanReport report = plan(
      [&](CommandEncoder& e) {
        Temp last = temp(e);
        blend(e, x_, x_, last);
        for (uint32_t i = 0; i < kMany; i += 2) {
          const Temp y = temp(e), sum = temp(e);
          project(e, last, y);
          blend(e, last, y, sum);
          last = sum;
        }
      },
      /*check=*/false);
  // The sum reads by unit what the product reads whole, but neither writes it.
  EXPECT_EQ(report.fusions.size(), kMany / 2);
  EXPECT_EQ(report.commands, 1 + kMany / 2);
  EXPECT_EQ(report.fused_levels, 1 + kMany / 2);
  EXPECT_EQ(report.recorded_levels, 1 + kMany);
}

TEST_F(FuseLimits, ThousandsOfProductsOfOneInput) {
  const PlanReport report = plan(
      [&](CommandEncoder& e) {
        for (uint32_t i = 0; i < kMany; ++i) project(e, x_, temp(e));
      },
      /*check=*/false);
  // Full groups of 64, and what is left.
  ASSERT_EQ(report.fusions.size(), (kMany + 63) / 64);
  EXPECT_EQ(report.fusions[0].substr(0, 16), "project*64: #0 #");
  EXPECT_EQ(report.commands, report.fusions.size());
  EXPECT_EQ(report.levels, 1u);
}

TEST_F(FuseLimits, ThousandsOfReadersOfOneValue) {
  const PlanReport report = plan(
      [&](CommandEncoder& e) {
        const Temp y = temp(e);
        project(e, x_, y);
        for (uint32_t i = 1; i < kMany; ++i) blend(e, x_, y, temp(e));
      },
      /*check=*/false);
  EXPECT_EQ(report.fusions.size(), 1u);
  EXPECT_EQ(report.commands, kMany - 63);
}

TEST_F(FuseLimits, ThousandsOfFences) {
  const PlanReport report = plan(
      [&](CommandEncoder& e) {
        for (uint32_t i = 0; i < kMany; i += 2) {
          project(e, x_, temp(e));
          e.barrier();
        }
      },
      /*check=*/false);
  EXPECT_TRUE(report.fusions.empty());
  // Each says once why it stands alone.
  ASSERT_EQ(report.misses.size(), kMany / 2 - 1);
  EXPECT_EQ(report.misses[0], "#2 project does not join project at #0: #1 fence lies between");
}

TEST_F(FuseLimits, AFenceIsNamedBeforeWhatFollowsIt) {
  const PlanReport report = plan([&](CommandEncoder& e) {
    const Temp y = temp(e), z = temp(e);
    project(e, x_, y);
    dispatch(e, kScale, std::array{Operand(x_), Operand(y), Operand(z)}, RowConstants{7, 6, 6, 6});
    e.barrier();
    e.barrier();
    blend(e, y, z, temp(e));
  });
  EXPECT_TRUE(report.fusions.empty());
  ASSERT_EQ(report.misses.size(), 2u);
  EXPECT_EQ(report.misses[1], "#4 blend does not join project at #0: #2 fence lies between");
}

TEST_F(FuseLimits, AFullGroupSaysSo) {
  const PlanReport report = plan([&](CommandEncoder& e) {
    for (uint32_t i = 0; i < 64; ++i) project(e, x_, temp(e));
    const Temp last = temp(e);
    project(e, x_, last);
    blend(e, last, last, temp(e));
  });
  ASSERT_EQ(report.fusions.size(), 2u);
  EXPECT_EQ(report.fusions[1], "project+blend: #64 #65");
  EXPECT_EQ(report.misses, Names{"#64 project does not join project*64 at #0: it has 64 members"});
}

TEST_F(FuseLimits, ReadersThatMayNotJoinCostNoTries) {
  // A hundred products of the value come before the sum of it.
  const PlanReport report = plan([&](CommandEncoder& e) {
    const Temp y = temp(e), z = temp(e);
    project(e, x_, y);
    for (uint32_t i = 0; i < 100; ++i) project(e, y, z);
    blend(e, y, y, temp(e));
  });
  ASSERT_FALSE(report.fusions.empty());
  EXPECT_EQ(report.fusions[0], "project+blend: #0 #101");
}

TEST_F(FuseLimits, WhoIsNotTriedIsNamed) {
  for (const uint32_t refused : {63u, 64u}) {
    const PlanReport report = plan([&](CommandEncoder& e) {
      const Temp y = temp(e), z = temp(e);
      project(e, x_, y);
      for (uint32_t i = 0; i < refused; ++i)
        dispatch(e, kScale, std::array{Operand(x_), Operand(y), Operand(z)}, RowConstants{7, 6, 6, 6});
      for (uint32_t i = 0; i < 3; ++i) blend(e, y, y, temp(e));
    });
    EXPECT_EQ(report.fusions.empty(), refused == 64);
    ASSERT_EQ(report.misses.size(), refused + 1);
    EXPECT_EQ(report.misses[refused],
              refused == 63 ? "#65 blend does not join project+blend at #0: 64 others have been tried"
                            : "#65 blend does not join project at #0: 64 others have been tried");
  }
}

TEST_F(FuseLimits, WhatIsFarIsLeft) {
  for (const uint32_t between : {1000u, 1024u}) {
    const PlanReport report = plan(
        [&](CommandEncoder& e) {
          const Temp y = temp(e), other = temp(e);
          project(e, x_, y);
          for (uint32_t i = 0; i < between; ++i) blend(e, x_, x_, other);
          blend(e, y, y, temp(e));
        },
        /*check=*/false);
    EXPECT_EQ(report.fusions.empty(), between == 1024) << between;
    if (between == 1024) {
      EXPECT_EQ(report.misses,
                Names{"#1025 blend does not join project at #0: it is more than 1024 commands away"});
    }
  }
}

TEST_F(FuseLimits, ConsumersOfOtherDtypesShareUnitsNotBytes) {
  const PlanReport report = plan([&](CommandEncoder& e) {
    const Temp y = temp(e), wide = temp(e, DType::u64), back = temp(e);
    project(e, x_, y);
    dispatch(e, kWiden, std::array{Operand(y), Operand(wide)}, RowConstants{7, 6, 6, 0});
    dispatch(e, kNarrow, std::array{Operand(wide), Operand(back)}, RowConstants{7, 6, 6, 0});
  });
  EXPECT_EQ(report.fusions, Names{"project+widen+narrow: #0 #1 #2"});
}

TEST_F(FuseLimits, AConsumerThatReadsOtherUnitsIsLeft) {
  // One element of each row is everyone's factor.
  const PlanReport report = plan([&](CommandEncoder& e) {
    const Temp y = temp(e), z = temp(e);
    project(e, x_, y);
    project(e, x_, z);
    dispatch(e, kScale, std::array{Operand(z), Operand(y), Operand(temp(e))}, RowConstants{7, 6, 6, 6});
  });
  EXPECT_EQ(report.fusions, Names{"project*2: #0 #1"});
  EXPECT_EQ(report.misses, Names{"#2 scale does not join project*2 at #0: #0 project.output and #2 "
                                 "scale.factor share memory, not unit by unit"});
}

TEST_F(FuseLimits, AConsumerWithoutAKernelForItsDtypeIsLeft) {
  // Kernels decide which dtypes they take together; the reason names the lack.
  std::vector<backend::Kernel> kernels(fusible_kernels().begin(), fusible_kernels().end());
  for (backend::Kernel& kernel : kernels) {
    if (kernel.op == &kBlend)
      kernel.accepts = [](const OpCall& call) { return call.args[0].dtype == call.args[2].dtype; };
  }
  CommandEncoder e = device_.encoder();
  const Temp y = temp(e), wide = temp(e, DType::u64);
  project(e, x_, y);
  blend(e, y, y, wide);
  ComputeGraph graph = e.finish();
  graph::expand(graph, graph::Mode::exact);
  const graph::FuseReport report = graph::fuse(graph, kernels, device_.info());
  EXPECT_TRUE(report.fusions.empty());
  EXPECT_EQ(report.misses, Names{"#1 blend does not join project at #0: no kernel accepts it"});
}

TEST_F(FuseLimits, AProductThatReadsItsInputTwiceKeepsItInMemory) {
  const PlanReport report = plan([&](CommandEncoder& e) {
    const Temp h = temp(e);
    dispatch(e, kNorm, std::array{Operand(x_), Operand(h)}, RowConstants{7, 6, 1, 0});
    dispatch(e, kProject, std::array{Operand(h), Operand(h), Operand(temp(e))}, RowConstants{7, 6, 6, 6});
  });
  EXPECT_TRUE(report.fusions.empty());
  EXPECT_EQ(report.misses, Names{"#0 norm does not join project at #1: #0 norm.output and #1 project.weight "
                                 "share memory, not unit by unit"});
}

TEST_F(FuseLimits, WhatAGroupReadsIsRead) {
  // A graph with groups is fused once more, for a device that now has the kernels: the norm's value is read by a
  // member of the first group, so it keeps its memory.
  std::vector<backend::Kernel> kernels(fusible_kernels().begin(), fusible_kernels().end());
  CommandEncoder e = device_.encoder();
  const Temp h = temp(e), y = temp(e), z = temp(e);
  dispatch(e, kNorm, std::array{Operand(x_), Operand(h)}, RowConstants{7, 6, 1, 0});
  project(e, x_, y);
  blend(e, y, h, temp(e));
  project(e, h, z);
  ComputeGraph graph = e.finish();
  graph::expand(graph, graph::Mode::exact);
  for (backend::Kernel& kernel : kernels) kernel.regions &= kernel.op != &kNorm;
  EXPECT_EQ(graph::fuse(graph, kernels, device_.info()).fusions, Names{"project+blend: #1 #2"});
  const graph::FuseReport again = graph::fuse(graph, fusible_kernels(), device_.info());
  EXPECT_TRUE(again.fusions.empty());
  EXPECT_EQ(again.misses,
            Names{"#0 norm does not join project at #2: #1 project+blend reads its value, too"});
}

// Ops that do not say what they cost, and one whose output may be in place of an input that is wider.
constexpr OpSchema without_cost(OpSchema op) {
  op.cost = nullptr;
  return op;
}
constexpr OpSchema kFreeProject = without_cost(kProject), kFreeBlend = without_cost(kBlend);
constexpr OpSchema kHalve = row_op("halve", kNormArgs, backend::Iteration::row_reduction);
void halve(const Region& region) {
  const auto* input = region.args.arg<uint32_t>(0);
  auto* output = region.args.arg<uint32_t>(1);
  region.units([&](uint32_t row, uint32_t, uint32_t first, uint32_t last) {
    for (uint32_t i = first; i < last; ++i) output[i] = mixed(input[row * region.c.others + i - first], 7);
  });
}
std::span<const backend::Kernel> free_kernels() {
  static const backend::Kernel kTable[] = {
      row_kernel<project>("project", kFreeProject), row_kernel<blend>("blend", kFreeBlend),
      row_kernel<halve>("halve", kHalve), row_kernel<project>("project", kProject)};
  return kTable;
}

TEST(FuseCosts, AGroupOfOpsWithoutCostIsCutAsWell) {
  constexpr uint32_t kUnits = 256;
  Device device(backend::make_null(free_kernels(), 0, 1), {}, {});
  const Buffer x = device.buffer(DType::u32, {kRows, 16}), weight = device.buffer(DType::u32, {kUnits, 4096});
  CommandEncoder e = device.encoder();
  const Temp y = e.temp(DType::u32, {kRows, kUnits}), z = e.temp(DType::u32, {kRows, kUnits});
  const Buffer sum = device.buffer(DType::u32, {kRows, kUnits});
  for (const Temp& value : {y, z}) {
    dispatch(e, kFreeProject, std::array{Operand(x), Operand(weight), Operand(value)},
             RowConstants{7, kUnits, kUnits, 16});
  }
  dispatch(e, kFreeBlend, std::array{Operand(y), Operand(z), Operand(sum)},
           RowConstants{7, kUnits, kUnits, 0});
  const auto [plan, report] = device.plan(e.finish());
  ASSERT_EQ(report.fusions, std::vector<std::string>{"project*2+blend: #0 #1 #2"});
  ASSERT_EQ(plan.data().components.size(), 1u);
  // A row takes two flops for each element of both weights, 2^22: of 256 units, eight make 2^17.
  EXPECT_EQ(plan.data().components[0].units_per_tile, 8u);
}

TEST(FuseCosts, APrologueJoinsWhereComputingItInManyWorkersCostsLittle) {
  // A row of a norm is 8 operations a column, one of a product 2,048 an output. 64 outputs make a tile.
  const auto plan = [](uint32_t workers, uint32_t columns, uint32_t outputs) {
    Device device(backend::make_null(fusible_kernels(), 0, workers), {}, {});
    const Buffer x = device.buffer(DType::u32, {4, columns}), y = device.buffer(DType::u32, {4, outputs}),
                 weight = device.buffer(DType::u32, {1});
    CommandEncoder e = device.encoder();
    const Temp normed = e.temp(DType::u32, {4, columns});
    dispatch(e, kNorm, std::array{Operand(x), Operand(normed)}, RowConstants{7, columns, 1, 0});
    dispatch(e, kProject, std::array{Operand(normed), Operand(weight), Operand(y)},
             RowConstants{7, outputs, outputs, columns});
    return device.plan(e.finish()).second;
  };
  const auto joins = [&](uint32_t workers, uint32_t columns, uint32_t outputs) {
    return plan(workers, columns, outputs).commands == 1;
  };
  // 8 * 4,096 * 16 workers: a sixteenth of 2,048 * 4,096.
  EXPECT_TRUE(joins(16, 4096, 4096));
  EXPECT_FALSE(joins(16, 4104, 4096));
  EXPECT_TRUE(joins(2, 8 * 4096, 4096));
  EXPECT_FALSE(joins(2, 8 * 4096 + 8, 4096));
  EXPECT_FALSE(joins(2, 16 * 4096, 4096));
  EXPECT_TRUE(joins(1, 16 * 4096, 4096)) << "one worker computes it once";
  EXPECT_TRUE(joins(16, 4096, 64)) << "so does one tile";
  EXPECT_TRUE(joins(16, 8 * 128, 128)) << "two tiles, two workers";
  EXPECT_FALSE(joins(16, 8 * 128 + 8, 128));
  EXPECT_EQ(plan(16, 4104, 4096).misses,
            std::vector<std::string>{
                "#0 norm does not join project at #1: 16 workers would compute it, 525312 operations "
                "a row for a group of 8388608"});
}

TEST(FuseCosts, APrologueThatIsNotInPlaceOfItsInputMayBeNarrower) {
  backend::CpuOptions options;
  options.threads = 2;
  Device device(backend::make_validate(backend::make_cpu(options, free_kernels())), {}, {});
  const Buffer x = device.buffer(DType::u32, {kRows, 12}), weight = device.buffer(DType::u32, {1});
  for (size_t i = 0; i < 48; ++i) x.span<uint32_t>()[i] = static_cast<uint32_t>(i * i);
  std::vector<uint32_t> results[2];
  for (const bool fuse : {false, true}) {
    const Buffer y = device.buffer(DType::u32, {kRows, kWidth});
    CommandEncoder e = device.encoder();
    const Temp h = e.temp(DType::u32, {kRows, kWidth});
    dispatch(e, kHalve, std::array{Operand(x), Operand(h)}, RowConstants{7, 6, 1, 12});
    dispatch(e, kProject, std::array{Operand(h), Operand(weight), Operand(y)}, RowConstants{7, 6, 6, 6});
    PlanOptions plan_options;
    plan_options.fuse = fuse;
    const auto [plan, report] = device.plan(e.finish(), plan_options);
    EXPECT_EQ(report.fusions,
              fuse ? std::vector<std::string>{"halve+project: #0 #1"} : std::vector<std::string>{});
    device.wait(device.submit(device.prepare(plan)));
    results[fuse].assign(y.span<uint32_t>().begin(), y.span<uint32_t>().end());
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST_F(FuseLimits, OneOfTwoNormsIsThePrologue) {
  // Both give the product's input a value; the later one is what it reads.
  const RowConstants whole{7, 6, 1, 0};
  const PlanReport two = plan([&](CommandEncoder& e) {
    const Temp h = temp(e);
    dispatch(e, kNorm, std::array{Operand(x_), Operand(h)}, whole);
    dispatch(e, kNorm, std::array{Operand(h), Operand(h)}, whole);
    project(e, h, temp(e));
  });
  EXPECT_TRUE(two.fusions.empty());
  const PlanReport chain = plan([&](CommandEncoder& e) {
    const Temp g = temp(e), h = temp(e);
    dispatch(e, kNorm, std::array{Operand(x_), Operand(g)}, whole);
    dispatch(e, kNorm, std::array{Operand(g), Operand(h)}, whole);
    project(e, h, temp(e));
  });
  EXPECT_EQ(chain.fusions, Names{"norm+project: #1 #2"});
}

}  // namespace
}  // namespace refrain::null_tests
