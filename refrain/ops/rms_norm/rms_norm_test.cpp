// rms_norm: kernels against the reference, live rows, splits, aliasing, errors.
#include "refrain/ops/rms_norm/rms_norm.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

std::vector<const backend::Kernel*> kernels() { return kernels_of(rms_norm_schema); }

Call call_of(const Shape& shape, const Array<float>& input, const PackedWeight* weight,
             const Array<float>& output, float eps = 1e-6f) {
  Call call(rms_norm_schema);
  call.tensor(shape, input);
  weight != nullptr ? call.weight(*weight) : call.none();
  call.tensor(shape, output);
  call.constants(RmsNormConstants{.eps = eps});
  return call;
}

/// Half of the relative error of the sum of squares (K / 32 + 9 roundings in lanes and their sum), then the
/// mean, eps, root, quotient, two products and the reference's own rounding.
double tolerance(const Array<float>& expected, size_t i, int64_t columns) {
  return (static_cast<double>(columns) / 32 + 12) * kUnitRoundoff *
         std::abs(static_cast<double>(expected[i]));
}

TEST(RmsNorm, MatchesTheReference) {
  Random random;
  const DType dtypes[] = {DType::f32, DType::bf16, DType::f16};
  size_t turn = 0;
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 7}, Shape{2, 32}, Shape{5, 63}, Shape{4, 1024},
                             Shape{3, 4097}, Shape{9, 4, 128}, Shape{70, 2, 64}, Shape{300, 40}}) {
    const auto count = static_cast<size_t>(shape.elements());
    const auto rows = static_cast<uint32_t>(shape[0]);
    Array<float> input(count);
    random.fill(input, -3, 3);
    const PackedWeight weight = random_plain_weight(dtypes[turn++ % 3], {shape.back()}, vector_f32(), random);
    for (const PackedWeight* bound : {static_cast<const PackedWeight*>(nullptr), &weight}) {
      for (const uint32_t live : {0u, 1u, rows / 2, rows, rows + 3}) {
        Array<float> expected(count, -7), first(count, -7), got(count, -7);
        call_of(shape, input, bound, expected).reference(std::min(live, rows));
        for (const backend::Kernel* kernel : kernels()) {
          std::fill(first.begin(), first.end(), -7.0f);
          call_of(shape, input, bound, first).run(*kernel, live);
          EXPECT_LE(excess(expected, first, [&](size_t i) { return tolerance(expected, i, shape.back()); }),
                    0)
              << kernel->name << " " << to_string(shape) << " live " << live;
          for (size_t i = std::min(live, rows) * (count / rows); i < count; ++i) ASSERT_EQ(first[i], -7);
          for (const Walk& walk : kWalks) {
            std::fill(got.begin(), got.end(), -7.0f);
            call_of(shape, input, bound, got).run(*kernel, live, walk);
            EXPECT_TRUE(same_bits(first, got)) << kernel->name;
          }
        }
      }
    }
  }
}

TEST(RmsNorm, ZerosGiveZerosAndInPlaceGivesTheSameBits) {
  Random random;
  const Shape shape{4, 77};
  Array<float> input(4 * 77);
  random.fill(input);
  std::fill_n(input.begin() + 77, 77, 0.0f);
  const PackedWeight weight = random_plain_weight(DType::bf16, {77}, vector_f32(), random);
  for (const backend::Kernel* kernel : kernels()) {
    Array<float> output(4 * 77), in_place = input;
    call_of(shape, input, &weight, output).run(*kernel, 4);
    call_of(shape, in_place, &weight, in_place).run(*kernel, 4);
    EXPECT_TRUE(same_bits(output, in_place)) << kernel->name;
    for (size_t i = 77; i < 154; ++i) EXPECT_EQ(output[i], 0);
  }
}

TEST(RmsNorm, BitsDoNotDependOnTheNumberOfRows) {
  Random random;
  constexpr uint32_t kColumns = 147;
  Array<float> input(kColumns * 64);
  random.fill(input);
  for (const backend::Kernel* kernel : kernels()) {
    Array<float> together(kColumns * 64);
    call_of({64, kColumns}, input, nullptr, together).run(*kernel, 64);
    for (uint32_t row = 0; row < 64; ++row) {
      Array<float> one(kColumns), alone(kColumns);
      std::copy_n(input.begin() + row * kColumns, kColumns, one.begin());
      call_of({1, kColumns}, one, nullptr, alone).run(*kernel, 1);
      EXPECT_EQ(std::memcmp(alone.data(), together.data() + row * kColumns, kColumns * sizeof(float)), 0);
    }
  }
}

TEST(RmsNorm, RefusesWhatDoesNotFit) {
  Random random;
  Array<float> data(6);
  const PackedWeight good = random_plain_weight(DType::bf16, {3}, vector_f32(), random);
  const PackedWeight wrong = random_plain_weight(DType::bf16, {2}, vector_f32(), random);
  const PackedWeight matrix = random_plain_weight(DType::bf16, {1, 3}, rows(), random);
  EXPECT_EQ(call_of({2, 3}, data, &good, data).check_error(), "");
  EXPECT_EQ(call_of({2, 3}, data, &wrong, data).check_error(), "[rms_norm] weight: expected [3], got [2]");
  EXPECT_EQ(call_of({2, 3}, data, &matrix, data).check_error(),
            "[rms_norm] weight: expected a weight packed for vector, got layout rows");
  EXPECT_EQ(call_of({6}, data, nullptr, data).check_error(),
            "[rms_norm] input: expected [rows, columns] or [rows, vectors, columns], got [6]");
  EXPECT_EQ(call_of({2, 3}, data, &good, data, NAN).check_error(),
            "[rms_norm] eps: expected a finite value, not negative, got nan");
  Call call = call_of({2, 3}, data, &good, data);
  call.info(1).weight = nullptr;
  EXPECT_EQ(call.check_error(), "[rms_norm] weight: expected a weight, got a buffer or a temp");
}

}  // namespace
}  // namespace refrain::ops
