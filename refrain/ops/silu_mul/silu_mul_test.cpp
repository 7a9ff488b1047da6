// silu_mul: kernels against the reference, special values, live rows, splits, aliasing, errors.
#include "refrain/ops/silu_mul/silu_mul.h"

#include "refrain/ops/test_elementwise.h"

namespace refrain::ops {
namespace {

using namespace harness;

const ElementwiseOp<SiluMulConstants> kTested{
    silu_mul_schema,
    {},
    {{-30, 30}, {-3, 3}},
    {0.0f, -0.0f, 1e-30f, -1e-30f, 80.0f, -80.0f, 200.0f, -200.0f, 3e38f, NAN, INFINITY}};

TEST(SiluMul, MatchesTheReference) {
  expect_reference(kTested, [](const std::vector<Array<float>>& inputs, double expected, size_t i) {
    // Relative: exp 2e-7, then the sum, the quotient, the product and the reference, half a unit each: below 6e-7.
    // Absolute: a gate below -88 may give 0 for 89 e^-88 |up| < 1e-36 |up|.
    return 6e-7 * std::abs(expected) + 1e-36 * std::abs(inputs[1][i]);
  });
}

TEST(SiluMul, BitsDependOnNeitherPlaceNorAliasing) { expect_same_bits(kTested); }

TEST(SiluMul, RefusesWhatDoesNotFit) { expect_refusals(kTested); }

}  // namespace
}  // namespace refrain::ops
