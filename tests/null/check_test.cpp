// The checker: silent on plans, and loud about every edge that a plan loses.
#include "refrain/graph/check.h"

#include <gtest/gtest.h>

#include <sstream>

#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

/// The plan without the `edge`-th edge of a command.
backend::PlanData without(const backend::PlanData& plan, uint32_t command, uint32_t edge) {
  backend::PlanData result = plan;
  result.deps.clear();
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const backend::Range deps = plan.commands[i].deps;
    result.commands[i].deps = {static_cast<uint32_t>(result.deps.size()), 0};
    for (uint32_t d = 0; d < deps.count; ++d) {
      if (i == command && d == edge) continue;
      result.deps.push_back(plan.deps[deps.first + d]);
      ++result.commands[i].deps.count;
    }
  }
  return result;
}

/// Conflicting pairs that the edges of the plan leave unordered.
Pairs unordered(const backend::PlanData& plan) {
  const graph::AccessList list = accesses(plan);
  const Relation before = stored_order(plan);
  Pairs pairs;
  for (uint32_t i = 0; i < list.commands.size(); ++i) {
    for (uint32_t j = 0; j < i; ++j) {
      if (!before[i][j] && conflict(list, i, j)) pairs.emplace(i, j);
    }
  }
  return pairs;
}

std::string title(const backend::PlanData& plan, uint32_t command) {
  const backend::Kernel* kernel = plan.commands[command].kernel;
  std::ostringstream text;
  text << '#' << command << ' ' << (kernel == nullptr ? "fence" : kernel->name);
  return text.str();
}

/// Removes each edge in turn.
void expect_every_edge_missed(const backend::PlanData& plan) {
  ASSERT_TRUE(graph::check_order(plan).empty());
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    for (uint32_t d = 0; d < plan.commands[i].deps.count; ++d) {
      const backend::PlanData broken = without(plan, i, d);
      Pairs reported;
      for (const graph::Unordered& pair : graph::check_order(broken)) {
        reported.emplace(pair.second, pair.first);
        EXPECT_NE(pair.reason.find(title(plan, pair.first)), std::string::npos) << pair.reason;
        EXPECT_NE(pair.reason.find(title(plan, pair.second)), std::string::npos) << pair.reason;
      }
      const uint32_t lost = plan.deps[plan.commands[i].deps.first + d];
      ASSERT_TRUE(reported.contains({i, lost})) << "edge " << lost << " to " << i;
      ASSERT_EQ(reported, unordered(broken)) << "edge " << lost << " to " << i;
    }
  }
}

TEST(Check, RandomPlansMissEveryEdge) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    Device device = null_device();
    RandomGraph random(device, 500 + seed, 30);
    const auto [plan, report] = graph::make_plan(random.finish(), kKernels, device.info(), {});
    expect_every_edge_missed(plan);
    if (HasFatalFailure()) return;
  }
}

/// The data flow of a transformer layer: norm, q k v, rope, cache, attention, residual, norm, gate up,
/// product, down.
ComputeGraph layer(Device& device) {
  CommandEncoder encoder = device.encoder();
  const auto buffer = [&](int64_t n) { return device.buffer(DType::u32, {n}); };
  const auto temp = [&](int64_t n) { return encoder.temp(DType::u32, {n}); };
  const auto mix = [&](Operand a, Operand b, Operand out) {
    dispatch(encoder, kMix, std::array{a, b, out}, MixConstants{1, 1, 1, 1});
  };
  const Buffer x = buffer(64), weights = buffer(640), cache = buffer(4096);
  const Temp h = temp(64), q = temp(64), k = temp(16), v = temp(16), attended = temp(64), o = temp(64);
  encoder.label("attention");
  mix(x, weights.slice(0, 64), h);
  mix(h, weights.slice(64, 64), q);
  mix(h, weights.slice(128, 16), k);
  mix(h, weights.slice(144, 16), v);
  mix(q, {}, q);
  mix(k, {}, k);
  dispatch(encoder, kUpdate, std::array{Operand(k), Operand(cache.slice(0, 2048))}, MixConstants{});
  dispatch(encoder, kUpdate, std::array{Operand(v), Operand(cache.slice(2048, 2048))}, MixConstants{});
  mix(q, cache, attended);
  mix(attended, weights.slice(160, 64), o);
  mix(x, o, x);
  encoder.label("mlp");
  const Temp n = temp(64), gate = temp(128), up = temp(128), product = temp(128), down = temp(64);
  mix(x, weights.slice(224, 64), n);
  mix(n, weights.slice(288, 64), gate);
  mix(n, weights.slice(352, 64), up);
  mix(gate, up, product);
  mix(product, weights.slice(416, 64), down);
  mix(x, down, x);
  return encoder.finish();
}

TEST(Check, ALayerMissesEveryEdge) {
  Device device = null_device();
  // mix may work in place of its first argument, so the residual sums and the rope do.
  const auto [plan, report] = device.plan(layer(device));
  EXPECT_EQ(report.commands, 17u);
  EXPECT_EQ(report.levels, 12u);
  expect_every_edge_missed(plan.data());
}

TEST(Check, TheReasonNamesArgumentsAndBytes) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
  encoder.label("one");
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b.slice(0, 8))},
           MixConstants{1, 1, 1, 1});
  encoder.label("two");
  dispatch(encoder, kUpdate, std::array{Operand(b.slice(4, 8)), Operand(a)}, MixConstants{1, 1, 1, 1});
  const auto [plan, report] = graph::make_plan(encoder.finish(), kKernels, device.info(), {});
  const auto found = graph::check_order(without(plan, 1, 0));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].reason,
            "#0 mix one and #1 update two are not ordered: a and target share bytes [0, 64) of allocation " +
                std::to_string(a.device_view().allocation->id));
}

TEST(Check, AFenceWithoutItsEdges) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {16}), b = device.buffer(DType::u32, {16});
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{1, 1, 1, 1});
  encoder.barrier();
  const auto [plan, report] = graph::make_plan(encoder.finish(), kKernels, device.info(), {});
  const auto found = graph::check_order(without(plan, 1, 0));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].reason, "#0 mix and #1 fence are not ordered: a fence lies between");
}

TEST(Check, AccumulationsCommuteAndWhatReadsThemComesAfter) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer in = device.buffer(DType::u32, {4}), status = device.buffer(DType::u32, {4});
  for (int i = 0; i < 2; ++i) {
    const Buffer out = device.buffer(DType::u32, {4});
    encoder.dispatch({&kPair, std::array{Operand(in), Operand(status), Operand(out), Operand()}, {}});
  }
  const Buffer published = device.buffer(DType::u32, {4});
  dispatch(encoder, kMix, std::array{Operand(status), Operand(), Operand(published)},
           MixConstants{1, 4, 0, 4});
  dispatch(encoder, kMix, std::array{Operand(in), Operand(), Operand(status)}, MixConstants{1, 4, 0, 4});
  const auto [plan, report] = graph::make_plan(encoder.finish(), kKernels, device.info(), {});
  EXPECT_EQ(plan.commands[1].deps.count, 0u);
  ASSERT_EQ(plan.commands[2].deps.count, 2u);
  EXPECT_TRUE(graph::check_order(plan).empty());
  const auto found = graph::check_order(without(plan, 2, 1));
  ASSERT_EQ(found.size(), 2u);  // it also led to what comes after
  EXPECT_EQ(found[0].reason.find("#1 pair and #2 mix are not ordered: status and a share bytes"), 0u)
      << found[0].reason;
  EXPECT_EQ(graph::check_order(without(plan, 3, 0)).size(), 3u);
}

}  // namespace
}  // namespace refrain::null_tests
