// Tests of elementwise ops: every kernel against the reference, live rows, splits, places, aliasing, shapes and dtypes that
// do not fit. Only for tests.
#pragma once

#include <algorithm>
#include <vector>

#include "refrain/ops/elementwise.h"
#include "refrain/ops/testing.h"

namespace refrain::ops::harness {

/// What of an op the tests need to know; its arguments are inputs and then one output.
template <class Constants>
struct ElementwiseOp {
  const backend::OpSchema& op;
  Constants constants;                       ///< but for what the shape implies
  std::vector<std::array<float, 2>> ranges;  ///< of random values, for each input
  std::vector<float> special;                ///< values of the first input, the others being 1.5

  Call call(const Shape& shape, const std::vector<Array<float>>& inputs, const Array<float>& output) const {
    Call made(op);
    for (const Array<float>& input : inputs) made.tensor(shape, input);
    return made.tensor(shape, output).constants(constants);
  }
  std::vector<Array<float>> inputs(const Shape& shape, uint64_t seed = 1) const {
    Random random(seed);
    std::vector<Array<float>> made;
    for (const auto& [low, high] : ranges)
      random.fill(made.emplace_back(static_cast<size_t>(shape.elements())), low, high);
    if (made[0].size() < 2 * special.size()) return made;
    for (size_t i = 0; i < made.size(); ++i) {
      for (size_t k = 0; k < special.size(); ++k) made[i][3 + k] = i == 0 ? special[k] : 1.5f;
    }
    return made;
  }
};

/// Each kernel is within `tolerance(inputs, expected, i)` of the reference, touches live rows only, and gives the same bits
/// however it is cut.
template <class Constants, class Tolerance>
void expect_reference(const ElementwiseOp<Constants>& tested, const Tolerance& tolerance) {
  for (const Shape& shape :
       {Shape{1, 1}, Shape{3, 7}, Shape{5, 1024}, Shape{2, 9001}, Shape{70, 257}, Shape{4, 3, 5}}) {
    const auto rows = static_cast<uint32_t>(shape[0]);
    const std::vector<Array<float>> inputs = tested.inputs(shape);
    for (const uint32_t live : {0u, 1u, rows / 2, rows, rows + 3}) {
      Array<float> expected(inputs[0].size(), -7);
      tested.call(shape, inputs, expected).reference(std::min(live, rows));
      for (const backend::Kernel* kernel : kernels_of(tested.op)) {
        SCOPED_TRACE(std::string(kernel->name) + " " + to_string(shape) + " live " + std::to_string(live));
        Array<float> first(expected.size(), -7);
        tested.call(shape, inputs, first).run(*kernel, live);
        EXPECT_LE(excess(expected, first, [&](size_t i) { return tolerance(inputs, expected[i], i); }), 0);
        for (size_t i = size_t{std::min(live, rows)} * first.size() / rows; i < first.size(); ++i)
          ASSERT_EQ(first[i], -7);
        for (const Walk& walk : kWalks) {
          Array<float> got(expected.size(), -7);
          tested.call(shape, inputs, got).run(*kernel, live, walk);
          EXPECT_TRUE(same_bits(first, got));
        }
      }
    }
  }
}

/// A row's bits do not depend on the rows around it, and the output may be any input.
template <class Constants>
void expect_same_bits(const ElementwiseOp<Constants>& tested) {
  const Shape shape{9, 1001};
  const std::vector<Array<float>> inputs = tested.inputs(shape, 2);
  for (const backend::Kernel* kernel : kernels_of(tested.op)) {
    SCOPED_TRACE(kernel->name);
    Array<float> together(inputs[0].size());
    tested.call(shape, inputs, together).run(*kernel, 9);
    for (size_t row = 0; row < 9; ++row) {
      std::vector<Array<float>> of_row;
      for (const Array<float>& input : inputs)
        std::copy_n(input.begin() + row * 1001, 1001, of_row.emplace_back(size_t{1001}).begin());
      Array<float> alone(1001);
      tested.call({1, 1001}, of_row, alone).run(*kernel, 1);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * 1001, [](float a, float b) {
        return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
      }));
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      const std::vector<Array<float>> copy = inputs;
      tested.call(shape, copy, copy[i]).run(*kernel, 9);
      EXPECT_TRUE(same_bits(together, copy[i])) << "in place of " << tested.op.args[i].name;
    }
  }
}

/// All kernels are of one numerics class and give its bits.
template <class Constants>
void expect_one_class(const ElementwiseOp<Constants>& tested) {
  const Shape shape{5, 1003};
  const std::vector<Array<float>> inputs = tested.inputs(shape, 3);
  const std::vector<const backend::Kernel*> kernels = kernels_of(tested.op);
  Array<float> first(inputs[0].size());
  tested.call(shape, inputs, first).run(*kernels[0], 5);
  for (const backend::Kernel* kernel : kernels) {
    EXPECT_EQ(kernel->numerics, kernels[0]->numerics);
    Array<float> output(first.size());
    tested.call(shape, inputs, output).run(*kernel, 5);
    EXPECT_TRUE(same_bits(first, output)) << kernel->name;
  }
}

/// Shapes and dtypes that do not fit are refused by name.
template <class Constants>
void expect_refusals(const ElementwiseOp<Constants>& tested) {
  const Shape shape{2, 3};
  const std::vector<Array<float>> inputs = tested.inputs(shape);
  const Array<float> output(6);
  const Call good = tested.call(shape, inputs, output);
  EXPECT_EQ(good.check_error(), "");
  const size_t count = tested.op.args.size();
  for (size_t i = 0; i < count; ++i) {
    const std::string name = "[" + std::string(tested.op.name) + "] " + std::string(tested.op.args[i].name);
    Call bad = good;
    bad.info(i).dtype = DType::f16;
    EXPECT_EQ(bad.check_error(), name + ": expected f32, got f16");
    bad = good;
    bad.info(i).bound = false;
    EXPECT_EQ(bad.check_error(), name + ": expected an operand, got none");
    if (i == 0) continue;
    bad = good;
    bad.info(i).shape = {3, 2};
    EXPECT_EQ(bad.check_error(), name + ": expected [2, 3], got [3, 2]");
  }
  Call bad = good;
  for (size_t i = 0; i < count; ++i) bad.info(i).dtype = DType::activation;
  EXPECT_EQ(bad.check_error(), "");
  for (size_t i = 0; i < count; ++i) bad.info(i).shape = {0, 3};
  EXPECT_EQ(bad.check_error().substr(bad.check_error().find(':')), ": expected [rows, ...], got [0, 3]");
  for (size_t i = 0; i < count; ++i) bad.info(i).shape = {1, int64_t{1} << 20, int64_t{1} << 20};
  EXPECT_EQ(bad.check_error().substr(bad.check_error().find(':')),
            ": expected rows of fewer than 2^32 elements, got [1, 1048576, 1048576]");
}

}  // namespace refrain::ops::harness
