// add: kernels against the reference, exactly; live rows, splits, aliasing, errors.
#include "refrain/ops/add/add.h"

#include "refrain/ops/test_elementwise.h"

namespace refrain::ops {
namespace {

using namespace harness;

const ElementwiseOp<AddConstants> kTested{
    add_schema, {}, {{-1, 1}, {-100, 100}}, {0.0f, -0.0f, 3e38f, NAN, INFINITY}};

TEST(Add, MatchesTheReference) {
  expect_reference(kTested, [](const auto&, double, size_t) { return 0.0; });
}

TEST(Add, BitsDependOnNeitherPlaceNorAliasing) { expect_same_bits(kTested); }

TEST(Add, RefusesWhatDoesNotFit) { expect_refusals(kTested); }

}  // namespace
}  // namespace refrain::ops
