// Numerics classes: an op runs in one of them throughout a plan and throughout the plans of a model, or is refused.
#include "refrain/graph/numerics.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/set_pattern.h"
#include "refrain/graph/dump.h"
#include "refrain/graph/make_plan.h"
#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using backend::Fit;
using backend::GroupKernel;
using backend::Kernel;
using backend::SetCall;
using test::refusal;

constexpr int kEntry = 0;
backend::Launch launch_plain(const SetCall& call, const backend::DeviceInfo&) { return {call.rows, 1, 1, 0}; }

// norm -> project, the norm's value elided.
constexpr std::string_view kPlaces[] = {"norm", "project"};
constexpr backend::SetWire kWires[] = {{0, 1, 1, 0}};
constexpr backend::SetElided kElided[] = {{0, 1}};
constexpr backend::SetPattern kNormProject{kPlaces, kWires, kElided, nullptr};
constexpr backend::OpClass kNormExactly[] = {{"norm", "exact"}};

GroupKernel norm_project(std::span<const backend::OpClass> classes = {}) {
  return {"norm_project",
          "fast",
          0,
          [](const SetCall& c, std::span<uint32_t> p) { return match(kNormProject, c, p); },
          [](const SetCall& c, uint32_t m, uint32_t a) { return elides(kNormProject, c, m, a); },
          launch_plain,
          &kEntry,
          classes};
}

class Numerics : public testing::Test {
 protected:
  Numerics() {
    for (Kernel kernel : fusible_kernels()) {
      kernel.numerics = "exact";
      if (kernel.accepts == any) kernels_.push_back(kernel);
    }
  }
  Kernel& kernel(std::string_view name) { return *std::ranges::find(kernels_, name, &Kernel::name); }
  /// Before the others: takes calls of one row.
  void add_for_one_row(std::string_view of, std::string_view name, std::string_view numerics) {
    Kernel row = kernel(of);
    row.name = name;
    row.numerics = numerics;
    row.accepts = [](const OpCall& call) { return call.args[0].shape[0] == 1; };
    kernels_.insert(kernels_.begin(), row);
  }
  Buffer buffer(int64_t rows) { return device_.buffer(DType::u32, {rows, 8}); }
  static void add(CommandEncoder& e, const OpSchema& op, std::initializer_list<Operand> operands) {
    const RowConstants constants{1, 8, 4, 8};
    std::vector<Operand> bound(operands);
    e.dispatch({&op, bound, std::as_bytes(std::span(&constants, 1))});
  }
  PlanReport plan(CommandEncoder& e, bool fuse = true, std::span<const GroupKernel> groups = {}) {
    backend::DeviceInfo info = device_.info();
    info.composes = groups.empty();
    graph::PlanOptions options;
    options.fuse = fuse;
    return graph::make_plan(e.finish(), backend::KernelTables(kernels_, groups), info, options).second;
  }
  /// norm, project, and a norm of what comes out.
  PlanReport norms(int64_t rows, std::span<const GroupKernel> groups = {}) {
    CommandEncoder e = device_.encoder();
    const Temp normed = e.temp(DType::u32, {rows, 8}), product = e.temp(DType::u32, {rows, 8});
    add(e, kNorm, {buffer(rows), normed});
    add(e, kProject, {normed, buffer(1), product});
    add(e, kNorm, {product, buffer(rows)});
    return plan(e, true, groups);
  }

  std::vector<Kernel> kernels_;
  Device device_{backend::make_null(fusible_kernels()), {}, {}};
};

TEST_F(Numerics, TwoClassesOfAnOpInAPlanAreRefused) {
  add_for_one_row("blend", "blend_one", "of one row");
  const auto record = [&](bool fuse) {
    CommandEncoder e = device_.encoder();
    add(e, kBlend, {buffer(4), buffer(4), buffer(4)});
    add(e, kNorm, {buffer(1), buffer(1)});
    add(e, kBlend, {buffer(1), buffer(1), buffer(1)});
    return plan(e, fuse);
  };
  for (const bool fuse : {false, true}) {
    EXPECT_EQ(
        refusal([&] { record(fuse); }),
        "[plan] blend of u32, u32, u32: expected one numerics class in a plan, got kernel blend of the class "
        "'exact' and kernel blend_one of the class 'of one row'");
  }
  kernels_.front().numerics = "exact";
  const PlanReport report = record(false);
  ASSERT_EQ(report.numerics.size(), 2u) << "two kernels of one class are one row";
  EXPECT_EQ(report.numerics[0].op, "blend");
  EXPECT_EQ(report.numerics[0].kernel, "blend");
  EXPECT_EQ(report.numerics_of, (std::vector<uint32_t>{0, 1, 0}));
  EXPECT_NE(graph::dump(report).find("numerics blend of u32, u32, u32: exact by blend\n"), std::string::npos);
}

TEST_F(Numerics, MembersOfComposedGroupsCount) {
  add_for_one_row("blend", "blend_one", "of one row");
  const auto record = [&](int64_t rows) {
    CommandEncoder e = device_.encoder();
    const Temp product = e.temp(DType::u32, {4, 8});
    add(e, kProject, {buffer(4), buffer(1), product});
    add(e, kBlend, {product, product, buffer(4)});
    add(e, kBlend, {buffer(rows), buffer(rows), buffer(rows)});
    return plan(e);
  };
  EXPECT_EQ(record(4).fusions.size(), 1u);
  EXPECT_NE(refusal([&] { record(1); }), "nothing was thrown");
}

TEST_F(Numerics, OtherDtypesAreAnotherMatter) {
  Kernel wide = kernel("widen");
  wide.accepts = [](const OpCall& call) { return call.args[0].dtype == DType::f32; };
  wide.name = "widen_f32";
  wide.numerics = "float";
  kernels_.insert(kernels_.begin(), wide);
  CommandEncoder e = device_.encoder();
  const auto record = [&](DType dtype) {
    add(e, kWiden, {device_.buffer(dtype, {4, 8}), device_.buffer(DType::u64, {4, 8})});
  };
  record(DType::u32);
  record(DType::f32);
  const PlanReport report = plan(e);
  ASSERT_EQ(report.numerics.size(), 2u);
  EXPECT_EQ(report.numerics[0].types, "u32, u64");
  EXPECT_EQ(report.numerics[1].types, "f32, u64");
  EXPECT_EQ(report.numerics[1].numerics, "float");
}

TEST_F(Numerics, FencesHaveNone) {
  CommandEncoder e = device_.encoder();
  add(e, kNorm, {buffer(4), buffer(4)});
  e.barrier();
  add(e, kNorm, {buffer(4), buffer(4)});
  e.barrier();
  EXPECT_EQ(plan(e).numerics_of, (std::vector<uint32_t>{0, graph::kNone, 0, graph::kNone}));
}

TEST_F(Numerics, WhatASetKeepsToItselfIsNotSeen) {
  const GroupKernel set[] = {norm_project()};
  const PlanReport report = norms(4, set);
  EXPECT_EQ(report.fusions, std::vector<std::string>{"norm_project: #0 #1"});
  ASSERT_EQ(report.numerics.size(), 3u);
  EXPECT_TRUE(report.numerics[0].elided);
  EXPECT_EQ(report.numerics[0].numerics, "fast");
  EXPECT_FALSE(report.numerics[1].elided);
  EXPECT_EQ(report.numerics[2].numerics, "exact") << "the second norm, a kernel of its own";
  // A product whose value is seen is not in two classes.
  CommandEncoder e = device_.encoder();
  const Temp normed = e.temp(DType::u32, {4, 8});
  add(e, kNorm, {buffer(4), normed});
  add(e, kProject, {normed, buffer(1), buffer(4)});
  add(e, kProject, {buffer(4), buffer(1), buffer(4)});
  EXPECT_EQ(refusal([&] { plan(e, true, set); }),
            "[plan] project of u32, u32, u32: expected one numerics class in a plan, got kernel norm_project "
            "of the "
            "class 'fast' and kernel project of the class 'exact'");
}

TEST_F(Numerics, PlansOfAModelRunAnOpInOneClass) {
  const GroupKernel set[] = {norm_project()}, exactly[] = {norm_project(kNormExactly)};
  const PlanReport plain = norms(64), fast = norms(1, set), half = norms(1, exactly);
  graph::require_same_numerics(plain, norms(4));
  graph::require_same_numerics(fast, norms(2, set));
  EXPECT_EQ(refusal([&] { graph::require_same_numerics(fast, plain); }),
            "[plan] norm of u32, u32: expected one numerics class in the plans of a model, got kernel "
            "norm_project of "
            "the class 'fast' and kernel norm of the class 'exact'")
      << "elided in one of them, which changes what is seen all the same";
  EXPECT_EQ(
      refusal([&] { graph::require_same_numerics(half, plain); }),
      "[plan] project of u32, u32, u32: expected one numerics class in the plans of a model, got kernel "
      "norm_project of the class 'fast' and kernel project of the class 'exact'")
      << "the norm is computed as elsewhere, the product is not";
  kernel("project").numerics = "fast";
  graph::require_same_numerics(half, norms(64));
  // Another op in the same place is a rewrite's.
  PlanReport rewritten = plain;
  rewritten.numerics.push_back({.op = "norm_in_parts", .numerics = "parts"});
  rewritten.numerics_of[0] = static_cast<uint32_t>(rewritten.numerics.size() - 1);
  graph::require_same_numerics(plain, rewritten);
}

}  // namespace
}  // namespace refrain::null_tests
