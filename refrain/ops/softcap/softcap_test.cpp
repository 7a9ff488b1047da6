// softcap: kernels against the reference, the same bits of all of them, values at the ends, errors.
#include "refrain/ops/softcap/softcap.h"

#include "refrain/ops/test_elementwise.h"

namespace refrain::ops {
namespace {

using namespace harness;

ElementwiseOp<SoftcapConstants> softcap_by(float cap) {
  return {softcap_schema,
          {.cap = cap},
          {{-8 * cap, 8 * cap}},
          {0.0f, -0.0f, 1e-30f, -3e38f, 3e38f, INFINITY, -INFINITY, NAN}};
}

TEST(Softcap, MatchesTheReference) {
  // Roundings: tanh 6 units; x / cap, the product and the reference 1 each. No normal x / cap: half its unit is cap * 2^-150.
  for (const float cap : {30.0f, 0.7f, 1e-20f, 1e30f}) {
    expect_reference(softcap_by(cap), [&](const auto&, double expected, size_t) {
      return 9 * kUnitRoundoff * std::abs(expected) + 0x1p-149 * std::max(cap, 1.0f);
    });
  }
}

TEST(Softcap, BitsDependOnNeitherPlaceNorKernel) {
  expect_same_bits(softcap_by(30));
  expect_one_class(softcap_by(30));
}

TEST(Softcap, RefusesWhatDoesNotFit) {
  expect_refusals(softcap_by(30));
  for (const auto& [cap, shown] : {std::pair{0.0f, "0"}, {-1.0f, "-1"}, {INFINITY, "inf"}, {NAN, "nan"}}) {
    EXPECT_EQ(softcap_by(cap).call({2, 3}, {Array<float>(6)}, Array<float>(6)).check_error(),
              std::string("[softcap] cap: expected a finite number above 0, got ") + shown);
  }
}

}  // namespace
}  // namespace refrain::ops
