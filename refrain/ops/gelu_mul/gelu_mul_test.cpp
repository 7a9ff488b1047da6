// gelu_mul: kernels against the reference, special values, live rows, splits, aliasing, errors.
#include "refrain/ops/gelu_mul/gelu_mul.h"

#include "refrain/ops/test_elementwise.h"

namespace refrain::ops {
namespace {

using namespace harness;

const ElementwiseOp<GeluMulConstants> kTested{
    gelu_mul_schema,
    {},
    {{-30, 30}, {-3, 3}},
    {0.0f, -0.0f, 1e-30f, -1e-30f, 80.0f, -80.0f, 200.0f, -200.0f, 3e38f, NAN, INFINITY}};

TEST(GeluMul, MatchesTheReference) {
  expect_reference(kTested, [](const std::vector<Array<float>>& inputs, double expected, size_t i) {
    // Relative: exp 2e-7, then the sum, the quotient, the product and the reference, half a unit each: below 6e-7; the
    // exponent 2 u of exp is wrong by five halves of its unit. Absolute: where 2 u is below -88 a kernel may give 0 for
    // |gate| e^-88 |up| < 1e-36 |up|.
    const double x = inputs[0][i], exponent = kGeluLinear * x + kGeluCubic * x * x * x;
    const double relative = 6e-7 + 0x1p-21 * std::min(std::abs(exponent), 100.0);
    return relative * std::abs(expected) + 1e-36 * std::abs(inputs[1][i]);
  });
}

TEST(GeluMul, BitsDependOnNeitherPlaceNorAliasing) { expect_same_bits(kTested); }

TEST(GeluMul, RefusesWhatDoesNotFit) { expect_refusals(kTested); }

}  // namespace
}  // namespace refrain::ops
