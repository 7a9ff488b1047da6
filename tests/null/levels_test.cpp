// Widths of levels: of plans by hand, and of a recording whose widths are known.
#include "refrain/graph/levels.h"

#include <gtest/gtest.h>

#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using graph::LevelWidth;
using Widths = std::vector<LevelWidth>;

Widths widths_of(std::initializer_list<uint32_t> levels, uint32_t fence_level = 0) {
  backend::PlanData plan;
  for (const uint32_t level : levels) plan.commands.emplace_back().level = level;
  backend::PlanCommand& fence = plan.commands.emplace_back();
  fence.kind = backend::CommandKind::fence;
  fence.level = fence_level;
  return graph::level_widths(plan);
}

TEST(Levels, EachWidthIsListedOnce) {
  EXPECT_EQ(widths_of({1, 2, 3}), (Widths{{1, 3}}));
  EXPECT_EQ(widths_of({1, 1, 2, 3, 3}), (Widths{{1, 1}, {2, 2}}));
  EXPECT_EQ(widths_of({3, 1, 2, 3}, 3), (Widths{{1, 2}, {2, 1}})) << "in any order, without the fence";
}

TEST(Levels, NothingIsMerged) {
  backend::PlanData plan;
  for (uint32_t width : {8u, 9u, 40u, 9u}) {
    const uint32_t level = plan.commands.empty() ? 1 : plan.commands.back().level + 1;
    for (uint32_t i = 0; i < width; ++i) plan.commands.emplace_back().level = level;
  }
  EXPECT_EQ(graph::level_widths(plan), (Widths{{8, 1}, {9, 2}, {40, 1}}));
}

TEST(Levels, NothingFromNothing) { EXPECT_TRUE(widths_of({}).empty()); }

TEST(Levels, OfARecording) {
  Device device = null_device();
  const Buffer x = device.buffer(DType::u32, {4});
  std::vector<Buffer> values;
  for (int i = 0; i < 11; ++i) values.push_back(device.buffer(DType::u32, {4}));
  CommandEncoder encoder = device.encoder();
  const auto mix = [&](const Buffer& a, const Buffer& output) {
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(output)}, MixConstants{1, 4, 0, 4});
  };
  for (const Buffer& value : values) mix(x, value);
  encoder.barrier();
  for (int i = 0; i < 3; ++i) mix(values[0], values[0]);
  const Plan plan = device.plan(encoder.finish()).first;
  EXPECT_EQ(graph::level_widths(plan.data()), (Widths{{1, 3}, {11, 1}}));
}

}  // namespace
}  // namespace refrain::null_tests
