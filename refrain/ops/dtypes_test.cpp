// What schemas say of dtypes: each argument refuses what it does not list, where it is recorded.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/null/null_backend.h"
#include "refrain/device/device.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "tests/refusal.h"

namespace refrain::ops {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16,   DType::f64, DType::u8,
                             DType::i8,  DType::u16, DType::i16,    DType::u32, DType::i32,
                             DType::u64, DType::i64, DType::boolean};

/// Weights, which are of any format.
const std::set<std::pair<std::string_view, std::string_view>> kWeights = {{"add_bias", "bias"},
                                                                          {"embedding", "weight"},
                                                                          {"matmul", "weight"},
                                                                          {"rms_norm", "weight"},
                                                                          {"rope", "frequencies"}};

DType listed(const backend::ArgumentSpec& spec) {
  const auto* found = std::ranges::find_if(kDTypes, [&](DType dtype) { return spec.dtypes.has(dtype); });
  return found != std::end(kDTypes) ? *found : DType::u8;
}

/// "f32 or f16"
std::string names(const backend::ArgumentSpec& spec) {
  std::string text;
  for (const DType dtype : kDTypes) {
    if (spec.dtypes.has(dtype)) text.append(text.empty() ? "" : " or ").append(name(dtype));
  }
  return text;
}

class DTypesOfOps : public testing::Test {
 protected:
  /// What recording `schema` says with argument `index` of `dtype` and the others of a dtype that they list.
  std::string refusal_of(const backend::OpSchema& schema, size_t index, DType dtype) {
    std::vector<Operand> operands;
    for (size_t i = 0; i < schema.args.size(); ++i) {
      const DType of = i == index ? dtype : listed(schema.args[i]);
      operands.emplace_back(buffers_.emplace_back(device_.buffer(of, {4, 4})));
    }
    const std::vector<std::byte> constants(schema.constants_bytes);
    CommandEncoder encoder = device_.encoder();
    std::string said = test::refusal([&] { encoder.dispatch({&schema, operands, constants}); });
    buffers_.clear();
    return said;
  }

  Device device_{backend::make_null({}), cpu_layouts(), {}};
  std::deque<Buffer> buffers_;  // operands refer to them
};

TEST_F(DTypesOfOps, EachArgumentRefusesWhatItDoesNotList) {
  size_t refused = 0;
  for (const backend::OpSchema* schema : all_schemas()) {
    for (size_t i = 0; i < schema->args.size(); ++i) {
      const backend::ArgumentSpec& spec = schema->args[i];
      EXPECT_EQ(spec.dtypes.empty(), kWeights.contains({schema->name, spec.name}))
          << schema->name << ' ' << spec.name << ": a tensor lists its dtypes, a weight none";
      if (spec.dtypes.empty()) continue;
      for (const DType dtype : kDTypes) {
        if (spec.dtypes.has(dtype)) continue;
        ++refused;
        EXPECT_EQ(refusal_of(*schema, i, dtype), std::string("[")
                                                     .append(schema->name)
                                                     .append("] ")
                                                     .append(spec.name)
                                                     .append(": expected ")
                                                     .append(names(spec))
                                                     .append(", got ")
                                                     .append(name(dtype)));
      }
    }
  }
  EXPECT_GT(refused, 500u);
}

TEST_F(DTypesOfOps, WhatTheModeMakesOfActivationsIsCheckedToo) {
  backend::ArgumentSpec specs[2];
  specs[0].name = "input";
  specs[0].dtypes = {DType::f32};
  specs[1].name = "output";
  specs[1].access = backend::Access::out;
  specs[1].dtypes = {DType::f16};
  backend::OpSchema op;
  op.name = "op";
  op.args = specs;
  CommandEncoder encoder = device_.encoder();
  const Buffer input = device_.buffer(DType::f32, {4});
  const Temp output = encoder.temp(DType::activation, {4});
  const Operand operands[] = {input, output};
  encoder.dispatch({&op, operands, {}});
  EXPECT_EQ(test::refusal([&] { device_.plan(encoder.finish()); }), "[op] output: expected f16, got f32");
}

/// What check_dtypes() says of a call with these arguments.
std::string said(std::span<const backend::ArgumentSpec> specs, std::span<const backend::ArgumentInfo> args) {
  backend::OpSchema op;
  op.name = "op";
  op.args = specs;
  return test::refusal([&] { backend::check_dtypes({&op, args, {}}); });
}

TEST(CheckDTypes, ActivationsAreFloats) {
  backend::ArgumentSpec specs[2];
  specs[0].name = "values";
  specs[0].dtypes = {DType::f16, DType::bf16};
  specs[1].name = "ids";
  specs[1].dtypes = {DType::u32};
  const auto of = [&](DType values, DType ids) {
    return said(specs, std::array{backend::ArgumentInfo{true, values, {}, nullptr, nullptr},
                                  backend::ArgumentInfo{true, ids, {}, nullptr, nullptr}});
  };
  EXPECT_EQ(of(DType::bf16, DType::u32), "nothing was thrown");
  EXPECT_EQ(of(DType::activation, DType::u32), "nothing was thrown");
  EXPECT_EQ(of(DType::f32, DType::u32), "[op] values: expected f16 or bf16, got f32");
  EXPECT_EQ(of(DType::f16, DType::activation), "[op] ids: expected u32, got activation");
}

TEST(CheckDTypes, WeightsAreNoTensors) {
  backend::ArgumentSpec specs[2];
  specs[0].name = "values";
  specs[0].dtypes = {DType::f32};
  specs[1].name = "weight";
  const backend::WeightInfo weight;
  std::array<backend::ArgumentInfo, 2> args{};
  for (backend::ArgumentInfo& arg : args) {
    arg.bound = true;
    arg.weight = &weight;
  }
  EXPECT_EQ(said(specs, args), "[op] values: expected f32, got a weight");
  args[0].bound = false;
  EXPECT_EQ(said(specs, args), "nothing was thrown");
}

}  // namespace
}  // namespace refrain::ops
