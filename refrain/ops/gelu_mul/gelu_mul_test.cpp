// gelu_mul: kernels against the reference, special values, live rows, splits, aliasing, errors.
#include "refrain/ops/gelu_mul/gelu_mul.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

std::vector<const backend::Kernel*> kernels() { return kernels_of(gelu_mul_schema); }

Call call_of(const Shape& shape, const Array<float>& gate, const Array<float>& up,
             const Array<float>& output) {
  Call call(gelu_mul_schema);
  call.tensor(shape, gate).tensor(shape, up).tensor(shape, output);
  const auto rows = static_cast<uint32_t>(shape[0]);
  call.constants(GeluMulConstants{rows, static_cast<uint32_t>(shape.elements()) / rows});
  return call;
}

TEST(GeluMul, MatchesTheReference) {
  Random random;
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 7}, Shape{5, 1024}, Shape{2, 9001}, Shape{70, 257}}) {
    const auto count = static_cast<size_t>(shape.elements());
    const auto rows = static_cast<uint32_t>(shape[0]);
    Array<float> gate(count), up(count);
    random.fill(gate, -30, 30);
    random.fill(up, -3, 3);
    if (count > 20) {
      const float special[] = {0.0f,   -0.0f,   1e-30f, -1e-30f, 80.0f,   -80.0f,
                               200.0f, -200.0f, 3e38f,  NAN,     INFINITY};
      std::copy(std::begin(special), std::end(special), gate.begin() + 3);
      std::fill_n(up.begin() + 3, std::size(special), 1.5f);
    }
    for (const uint32_t live : {0u, 1u, rows / 2, rows, rows + 3}) {
      Array<float> expected(count, -7), first(count, -7), got(count, -7);
      call_of(shape, gate, up, expected).reference(std::min(live, rows));
      for (const backend::Kernel* kernel : kernels()) {
        std::fill(first.begin(), first.end(), -7.0f);
        call_of(shape, gate, up, first).run(*kernel, live);
        // Relative: exp 2e-7, then the sum, the quotient, the product and the reference, half a unit each: below
        // 6e-7; the exponent 2 u of exp is wrong by five halves of its unit. Absolute: where 2 u is below -88 a
        // kernel may give 0 for |gate| e^-88 |up| < 1e-36 |up|.
        const double worst = excess(expected, first, [&](size_t i) {
          const double x = gate[i], exponent = kGeluLinear * x + kGeluCubic * x * x * x;
          const double relative = 6e-7 + 0x1p-21 * std::min(std::abs(exponent), 100.0);
          return relative * std::abs(static_cast<double>(expected[i])) + 1e-36 * std::abs(up[i]);
        });
        EXPECT_LE(worst, 0) << kernel->name << " " << to_string(shape) << " live " << live;
        for (size_t i = size_t{std::min(live, rows)} * count / rows; i < count; ++i) ASSERT_EQ(first[i], -7);
        for (const Walk& walk : kWalks) {
          std::fill(got.begin(), got.end(), -7.0f);
          call_of(shape, gate, up, got).run(*kernel, live, walk);
          EXPECT_TRUE(same_bits(first, got)) << kernel->name;
        }
      }
    }
  }
}

TEST(GeluMul, BitsDoNotDependOnWhereARowLies) {
  Random random;
  constexpr uint32_t kColumns = 37;
  Array<float> gate(kColumns * 9), up(kColumns * 9);
  random.fill(gate, -9, 9);
  random.fill(up);
  for (const backend::Kernel* kernel : kernels()) {
    Array<float> together(kColumns * 9);
    call_of({9, kColumns}, gate, up, together).run(*kernel, 9);
    for (uint32_t row = 0; row < 9; ++row) {
      Array<float> g(kColumns), u(kColumns), alone(kColumns);
      std::copy_n(gate.begin() + row * kColumns, kColumns, g.begin());
      std::copy_n(up.begin() + row * kColumns, kColumns, u.begin());
      call_of({1, kColumns}, g, u, alone).run(*kernel, 1);
      EXPECT_EQ(std::memcmp(alone.data(), together.data() + row * kColumns, kColumns * sizeof(float)), 0)
          << kernel->name << " row " << row;
    }
  }
}

TEST(GeluMul, OutputMayBeEitherArgument) {
  Random random;
  const Shape shape{3, 1001};
  Array<float> gate(3003), up(3003), expected(3003);
  random.fill(gate);
  random.fill(up);
  for (const backend::Kernel* kernel : kernels()) {
    call_of(shape, gate, up, expected).run(*kernel, 3);
    Array<float> in_place = gate;
    call_of(shape, in_place, up, in_place).run(*kernel, 3);
    EXPECT_TRUE(same_bits(expected, in_place)) << kernel->name;
    in_place = up;
    call_of(shape, gate, in_place, in_place).run(*kernel, 3);
    EXPECT_TRUE(same_bits(expected, in_place)) << kernel->name;
  }
}

TEST(GeluMul, RefusesWhatDoesNotFit) {
  Array<float> data(6);
  Call call = call_of({2, 3}, data, data, data);
  EXPECT_EQ(call.check_error(), "");
  call.info(1).shape = {2, 4};
  EXPECT_EQ(call.check_error(), "[gelu_mul] up: expected [2, 3], got [2, 4]");
  call = call_of({2, 3}, data, data, data);
  call.info(0).dtype = DType::u32;
  EXPECT_EQ(call.check_error(), "[gelu_mul] gate: expected f32, got u32");
}

}  // namespace
}  // namespace refrain::ops
