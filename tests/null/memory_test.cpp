// Memory planning, and with it the whole road from a recording to a plan: random graphs run in hostile orders
// on shared memory leave the bits of the recorded order on separate memory.
#include "refrain/graph/memory.h"

#include <gtest/gtest.h>

#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

TEST(Memory, RandomGraphs) {
  for (uint32_t seed = 0; seed < 500; ++seed)
    ASSERT_EQ(graph_faults(seed, 4 + seed % 40), "") << "seed " << seed;
}

TEST(Memory, LongRandomGraphs) {
  for (uint32_t seed = 0; seed < 6; ++seed) ASSERT_EQ(graph_faults(1000 + seed, 250), "") << "seed " << seed;
}

TEST(Memory, TheRunnerNoticesAWrongOrder) {
  // Backwards, ignoring the edges: if that gave the same bits, the tests above would show nothing.
  Device device = null_device();
  RandomGraph random(device, 5, 40);
  const auto [plan, report] = graph::make_plan(random.finish(), kKernels, device.info(), {});
  std::vector<uint32_t> backwards(plan.commands.size());
  for (uint32_t i = 0; i < backwards.size(); ++i)
    backwards[i] = static_cast<uint32_t>(backwards.size()) - 1 - i;
  std::vector<std::byte> arena(plan.arena_bytes + 1);
  random.reset();
  run_plan(plan, backwards, arena.data());
  EXPECT_FALSE(random.as_recorded());
}

TEST(Memory, RandomGraphsHaveWhatTheyAreFor) {
  // Refused dispatches, sharing, scratch, fences and live counts all occur.
  size_t refused = 0, saved = 0, scratch = 0, fences = 0, live = 0;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Device device = null_device();
    RandomGraph random(device, seed, 40);
    refused += random.refused();
    const auto [plan, report] = graph::make_plan(random.finish(), kKernels, device.info(), {});
    saved += report.temp_bytes > report.arena_bytes;
    scratch += report.scratch_bytes;
    for (const backend::PlanCommand& command : plan.commands) {
      fences += command.kind == backend::CommandKind::fence;
      live += command.live_arg != backend::kNone;
    }
  }
  EXPECT_GT(refused, 50u);
  EXPECT_GT(saved, 40u);
  EXPECT_GT(scratch, 0u);
  EXPECT_GT(fences, 20u);
  EXPECT_GT(live, 50u);
}

class Chain : public testing::Test {
 protected:
  /// `length` temps of 4096 bytes, each made of the one before.
  ComputeGraph record(int length) {
    CommandEncoder encoder = device_.encoder();
    const Buffer input = device_.buffer(DType::u32, {1024});
    const MixConstants c{1, 1024, 0, 1024};
    Temp last;
    for (int i = 0; i < length; ++i) {
      const Temp next = encoder.temp(DType::u32, {1024});
      dispatch(encoder, kMix, std::array{i == 0 ? Operand(input) : Operand(last), Operand(), Operand(next)},
               c);
      last = next;
    }
    return encoder.finish();
  }
  Device device_ = null_device();
};

TEST_F(Chain, NeedsTwoValuesAtATime) {
  const auto [plan, report] = device_.plan(record(10));
  EXPECT_EQ(report.temp_bytes, 10u * 4096);
  EXPECT_EQ(report.arena_bytes, 2u * 4096);
  EXPECT_EQ(report.edges, 9u);
}

TEST_F(Chain, WithoutReuseEachHasItsOwn) {
  PlanOptions options;
  options.reuse_memory = false;
  EXPECT_EQ(device_.plan(record(10), options).second.arena_bytes, 10u * 4096);
}

TEST(Memory, AnUnusedTempTakesNoBytes) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  encoder.temp(DType::u32, {1 << 20});
  EXPECT_EQ(device.plan(encoder.finish()).second.arena_bytes, 0u);
}

TEST(Memory, ScratchIsForEveryWorker) {
  Device device = null_device(7);
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {4}), b = device.buffer(DType::u32, {4});
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{4, 4, 0, 4});
  const auto [plan, report] = device.plan(encoder.finish());
  EXPECT_EQ(report.scratch_bytes, 7u * 64) << "36, and each part is aligned";
  const backend::PlanCommand& command = plan.data().commands[0];
  EXPECT_EQ(command.kernel->name, "mix_scratch");
  EXPECT_EQ(plan.data().args[command.args.first + command.scratch_arg].view.bytes, 7u * 64);
}

TEST(Memory, ValuesOfAWideGraphHaveBytesOfTheirOwn) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {4}), b = device.buffer(DType::u32, {4});
  for (int i = 0; i < 400; ++i) {
    const Temp temp = encoder.temp(DType::u32, {1 + i % 3 * 16});
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(temp)}, MixConstants{1, 4, 0, 1});
    if (i % 4 == 0)
      dispatch(encoder, kUpdate, std::array{Operand(temp), Operand(b)}, MixConstants{1, 1, 0, 4});
  }
  const ComputeGraph graph = encoder.finish();
  EXPECT_EQ(memory_faults(graph, device.info(), /*reuse=*/true), "");
  EXPECT_EQ(memory_faults(graph, device.info(), /*reuse=*/false), "");
}

TEST(Memory, PastTheLimitOfTriesValuesAreApart) {
  // 4,000 values at a time, of which one is refused 1,048 places at most.
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {16});
  for (int i = 0; i < 4000; ++i)
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(encoder.temp(DType::u32, {16}))},
             MixConstants{1, 16, 0, 16});
  PlanOptions options;
  options.check = false;
  // make_plan refuses a plan in which sharing orders commands.
  EXPECT_EQ(device.plan(encoder.finish(), options).second.arena_bytes, 4000u * 64);
}

TEST(Memory, ChainsBesideEachOtherNeedTwoValuesEach) {
  // However many there are: values of one chain never share with those of another.
  constexpr int kChains = 300, kLength = 6;
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {16});
  for (int i = 0; i < kChains; ++i) {
    Temp last;
    for (int k = 0; k < kLength; ++k) {
      const Temp next = encoder.temp(DType::u32, {16});
      dispatch(encoder, kMix, std::array{k == 0 ? Operand(a) : Operand(last), Operand(), Operand(next)},
               MixConstants{1, 16, 0, 16});
      last = next;
    }
  }
  EXPECT_EQ(device.plan(encoder.finish()).second.arena_bytes, size_t{kChains} * 2 * 64);
}

TEST(Memory, ActivationsAreF32InExactMode) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {3});
  const Temp t = encoder.temp(DType::activation, {3});
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(t)}, MixConstants{1, 3, 0, 3});
  const auto [plan, report] = device.plan(encoder.finish());
  EXPECT_EQ(report.temp_bytes, 12u);
}

}  // namespace
}  // namespace refrain::null_tests
