// The edges of a plan's graph: which are programmatic, what fences make, and that the check finds what is missing.
#include "refrain/backend/cuda/edges.h"

#include <gtest/gtest.h>

#include <random>

#include "refrain/core/error.h"
#include "tests/refusal.h"

namespace refrain::backend::cuda {
namespace {

/// Commands with these deps; an empty list that begins with kNone is a fence.
PlanData plan_of(const std::vector<std::vector<uint32_t>>& deps) {
  PlanData plan;
  for (const std::vector<uint32_t>& list : deps) {
    PlanCommand command;
    if (!list.empty() && list[0] == kNone) {
      command.kind = CommandKind::fence;
    } else {
      command.deps = {static_cast<uint32_t>(plan.deps.size()), static_cast<uint32_t>(list.size())};
      plan.deps.insert(plan.deps.end(), list.begin(), list.end());
    }
    plan.commands.push_back(command);
  }
  return plan;
}

std::string text(const std::vector<Edge>& edges) {
  std::string result;
  for (const Edge& edge : edges) {
    result += std::to_string(edge.from) + (edge.programmatic ? "~" : "-") + std::to_string(edge.to) + " ";
  }
  return result;
}

TEST(CudaEdges, TheLatestDepIsProgrammatic) {
  const PlanData plan = plan_of({{}, {0}, {0}, {1, 2}, {3, 0}});
  const std::vector<bool> waits(5, true);
  EXPECT_EQ(text(make_edges(plan, waits)), "0~1 0~2 1-3 2~3 3~4 0-4 ");
  EXPECT_EQ(text(make_edges(plan, waits, true)), "0-1 0-2 1-3 2-3 3-4 0-4 ");
  EXPECT_EQ(text(make_edges(plan, {true, true, false, true, true})), "0~1 0-2 1-3 2-3 3~4 0-4 ");
  check_edges(plan, waits, make_edges(plan, waits));
}

TEST(CudaEdges, FencesWaitForAllAndAreWaitedFor) {
  const PlanData plan = plan_of({{}, {}, {0}, {kNone}, {2}, {}, {kNone}, {kNone}, {4}});
  const std::vector<bool> waits = {true, true, true, false, true, true, false, false, true};
  EXPECT_EQ(text(make_edges(plan, waits)), "0~2 1-3 2-3 3-4 3-5 4-6 5-6 6-7 7-8 ");
  check_edges(plan, waits, make_edges(plan, waits));
}

TEST(CudaEdges, AFenceMayComeFirst) {
  const PlanData plan = plan_of({{kNone}, {}});
  EXPECT_EQ(text(make_edges(plan, {false, true})), "0-1 ");
}

TEST(CudaEdges, RandomPlansPassTheCheckAndNoneWithoutOneEdge) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<uint32_t>> deps;
    std::vector<bool> waits;
    for (uint32_t i = 0; i < 90; ++i) {
      std::vector<uint32_t> list;
      const bool fence = random() % 20 == 0;
      if (fence) list.push_back(kNone);
      // A dep that another implies would make that other's edge needless, so they are few and recent.
      if (!fence && i > 0 && random() % 4 != 0) list.push_back(i - 1 - random() % std::min(i, 3u));
      deps.push_back(list);
      waits.push_back(!fence && random() % 3 != 0);
    }
    const PlanData plan = plan_of(deps);
    const std::vector<Edge> edges = make_edges(plan, waits);
    check_edges(plan, waits, edges);
    for (size_t drop = 0; drop < edges.size(); ++drop) {
      std::vector<Edge> fewer = edges;
      fewer.erase(fewer.begin() + static_cast<ptrdiff_t>(drop));
      EXPECT_THROW(check_edges(plan, waits, fewer), DeviceError) << text({edges[drop]});
    }
  }
}

TEST(CudaEdges, TheCheckRefusesProgrammaticEdgesThatNobodyWaitsFor) {
  const PlanData plan = plan_of({{}, {}, {0, 1}});
  EXPECT_THROW(check_edges(plan, {true, true, false}, {{0, 2, true}, {1, 2, false}}), DeviceError);
  EXPECT_THROW(check_edges(plan, {false, true, true}, {{0, 2, true}, {1, 2, false}}), DeviceError);
  EXPECT_THROW(check_edges(plan, {true, true, true}, {{0, 2, true}, {1, 2, true}}), DeviceError);
  check_edges(plan, {true, true, true}, {{0, 2, true}, {1, 2, false}});
}

std::string text(const std::vector<bool>& completed) {
  std::string result;
  for (size_t i = 0; i < completed.size(); ++i) {
    if (completed[i]) result += std::to_string(i) + " ";
  }
  return result;
}

TEST(CudaEdges, WhatHasCompletedWhenACommandBegins) {
  // 0 ~ 1 ~ 2 ~ 3 ~ 4, and 5 behind a full edge from 2.
  const std::vector<Edge> edges = {{0, 1, true}, {1, 2, true}, {2, 3, true}, {3, 4, true}, {2, 5, false}};
  std::vector<bool> late(6, false);
  EXPECT_EQ(text(Completion(edges, late).at_begin(4)), "") << "all may have begun at once";
  EXPECT_EQ(text(Completion(edges, late).at_begin(5)), "0 1 2 ");
  late[2] = true;
  EXPECT_EQ(text(Completion(edges, late).at_begin(2)), "") << "late is of those behind it";
  EXPECT_EQ(text(Completion(edges, late).at_begin(3)), "0 1 ");
  EXPECT_EQ(text(Completion(edges, late).at_begin(4)), "0 1 ");
  late[3] = true;
  EXPECT_EQ(text(Completion(edges, late).at_begin(4)), "0 1 2 ");
  // A full edge in the middle of the chain, and one beside it.
  EXPECT_EQ(
      text(Completion({{0, 1, true}, {1, 2, false}, {2, 3, true}}, {false, false, false, false}).at_begin(3)),
      "0 1 ");
  EXPECT_EQ(
      text(Completion({{0, 2, false}, {1, 2, true}, {2, 3, true}}, {false, false, false, false}).at_begin(3)),
      "0 ");
}

TEST(CudaEdges, WhatMayBeReadAhead) {
  PlanData plan = plan_of({{}, {0}, {1}, {2}});
  Allocation memory;
  memory.id = 1;
  memory.bytes = 64;
  const auto write = [&](uint32_t command, const BufferView& view, Access access) {
    plan.commands[command].args = {static_cast<uint32_t>(plan.args.size()), 1};
    plan.args.push_back({view, access, false});
  };
  const std::vector<Edge> edges = make_edges(plan, std::vector<bool>(4, true));
  const BufferView read{&memory, 16, 16};
  const auto may = [&](const std::vector<bool>& late) {
    return may_read_ahead(plan, Completion(edges, late), 3, {read});
  };
  EXPECT_TRUE(may({false, false, false, false})) << "nobody writes it";
  write(0, {&memory, 24, 16}, Access::out);
  EXPECT_FALSE(may({false, false, false, false}));
  EXPECT_TRUE(may({false, true, false, false}));
  EXPECT_FALSE(may({true, false, false, false})) << "what triggers late has not completed itself";
  write(1, {&memory, 0, 16}, Access::inout);
  write(2, {nullptr, 16, 16}, Access::inout);
  EXPECT_TRUE(may({false, true, false, false})) << "beside it, and in the arena";
  write(2, read, Access::in);
  EXPECT_TRUE(may({false, true, false, false}));
  write(2, read, Access::accumulate);
  EXPECT_FALSE(may({false, true, false, false}));
  EXPECT_TRUE(may_read_ahead(plan, Completion(edges, {false, true, false, false}), 3, {{&memory, 20, 0}}))
      << "nothing";
}

}  // namespace
}  // namespace refrain::backend::cuda
