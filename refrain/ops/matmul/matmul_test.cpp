// matmul: kernels against the reference, live rows, splits, bits that do not depend on the number of rows,
// errors.
#include "refrain/ops/matmul/matmul.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

std::vector<const backend::Kernel*> kernels() { return kernels_of(matmul_schema); }

Call call_of(uint32_t rows, const Array<float>& input, const PackedWeight& weight,
             const Array<float>& output) {
  const int64_t n = weight.info.shape[0], k = weight.info.shape[1];
  Call call(matmul_schema);
  call.tensor({rows, k}, input).weight(weight).tensor({rows, n}, output);
  return call;
}

/// Each of 8 lanes or more adds at most ceil(K / 8) products, one rounding each; the portable kernel rounds
/// products too but has 16 lanes; then at most 4 sums of lanes, and the reference's rounding. Where scales are f32, a
/// kernel may round scale * code + bias once, while the format rounds scale * code, at most 2 here (see random_tensor),
/// and the sum.
double tolerance(const Array<float>& input, const PackedWeight& weight, size_t index) {
  const auto n = static_cast<size_t>(weight.info.shape[0]), k = static_cast<size_t>(weight.info.shape[1]);
  double norm = 0, input_norm = 0;
  for (size_t i = 0; i < k; ++i) {
    const double x = input[index / n * k + i];
    norm += std::abs(x * weight.values[index % n * k + i]);
    input_norm += std::abs(x);
  }
  const bool rounds_weights = weight.info.format->bits != 0 && weight.info.format->dtype == DType::f32;
  return kUnitRoundoff *
         ((static_cast<double>(k) / 8 + 6) * norm + (rounds_weights ? 2 * norm + 2 * input_norm : 0));
}

/// The product of the values that the format decodes to, in double.
Array<float> product(uint32_t rows, const Array<float>& input, const PackedWeight& weight) {
  const auto n = static_cast<size_t>(weight.info.shape[0]), k = static_cast<size_t>(weight.info.shape[1]);
  Array<float> output(rows * n);
  for (size_t i = 0; i < output.size(); ++i) {
    double sum = 0;
    for (size_t j = 0; j < k; ++j) sum += double{input[i / n * k + j]} * weight.values[i % n * k + j];
    output[i] = static_cast<float>(sum);
  }
  return output;
}

/// Runs every kernel in every way for these live rows and compares with the product and the reference.
void compare(uint32_t rows, uint32_t live, const Array<float>& input, const PackedWeight& weight) {
  const auto n = static_cast<size_t>(weight.info.shape[0]);
  const size_t written = std::min(live, rows) * n;
  const Array<float> right = product(rows, input, weight);
  Array<float> expected(rows * n, -7), reference(rows * n, -7), first(rows * n, -7), got(rows * n, -7);
  std::copy_n(right.begin(), written, expected.begin());
  call_of(rows, input, weight, reference).reference(std::min(live, rows));
  ASSERT_TRUE(same_bits(expected, reference));
  for (const backend::Kernel* kernel : kernels()) {
    std::fill(first.begin(), first.end(), -7.0f);
    call_of(rows, input, weight, first).run(*kernel, live);
    EXPECT_LE(
        excess(expected, first, [&](size_t i) { return i < written ? tolerance(input, weight, i) : 0; }), 0)
        << kernel->name << " " << weight.info.format->name << " " << rows << " x "
        << to_string(weight.info.shape) << " live " << live;
    for (const Walk& walk : kWalks) {
      std::fill(got.begin(), got.end(), -7.0f);
      call_of(rows, input, weight, got).run(*kernel, live, walk);
      EXPECT_TRUE(same_bits(first, got)) << kernel->name << " " << weight.info.format->name;
    }
  }
}

TEST(Matmul, PlainWeightsOfAnyWidth) {
  Random random;
  struct Size {
    uint32_t rows;
    int64_t n, k;
  };
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const Size& size :
         {Size{1, 1, 1}, Size{1, 13, 7}, Size{2, 5, 64}, Size{3, 12, 33}, Size{4, 25, 40}, Size{5, 3, 9},
          Size{7, 37, 130}, Size{70, 26, 65}, Size{130, 14, 31}, Size{1, 300, 512}}) {
      const PackedWeight weight = random_weight(format::plain(dtype), size.n, size.k, random);
      Array<float> input(size.rows * static_cast<size_t>(size.k));
      random.fill(input);
      for (const uint32_t live : {0u, 1u, size.rows / 2, size.rows, size.rows + 3})
        compare(size.rows, live, input, weight);
    }
  }
}

TEST(Matmul, EveryFormat) {
  Random random;
  struct Size {
    uint32_t rows;
    int64_t n, blocks;
  };
  for (const WeightFormat* format : matrix_formats()) {
    for (const Size& size : {Size{1, 1, 1}, Size{1, 13, 3}, Size{2, 5, 2}, Size{3, 12, 1}, Size{4, 25, 1},
                             Size{5, 7, 3}, Size{17, 14, 1}, Size{70, 14, 1}}) {
      const PackedWeight weight =
          random_weight(*format, size.n, size.blocks * format->block_elements, random);
      Array<float> input(size.rows * static_cast<size_t>(weight.info.shape[1]));
      random.fill(input);
      for (const uint32_t live : {0u, 1u, size.rows / 2, size.rows, size.rows + 3})
        compare(size.rows, live, input, weight);
    }
  }
}

TEST(Matmul, BitsOfARowDoNotDependOnTheNumberOfRows) {
  Random random;
  constexpr size_t kRows = 67, kOutputs = 29;
  for (const WeightFormat* format : matrix_formats()) {
    const size_t columns = format->bits == 0 ? 203 : 256;
    Array<float> input(kRows * columns);
    random.fill(input);
    const PackedWeight weight = random_weight(*format, kOutputs, static_cast<int64_t>(columns), random);
    for (const backend::Kernel* kernel : kernels()) {
      Array<float> all(kRows * kOutputs);
      call_of(kRows, input, weight, all).run(*kernel, kRows);
      for (const uint32_t some : {1u, 2u, 3u, 4u, 5u, 8u, 11u, 64u}) {
        for (size_t first = 0; first + some <= kRows; first += some) {
          Array<float> part(some * columns), output(some * kOutputs);
          std::copy_n(input.begin() + first * columns, part.size(), part.begin());
          call_of(some, part, weight, output).run(*kernel, some);
          ASSERT_EQ(std::memcmp(output.data(), all.data() + first * kOutputs, output.size() * sizeof(float)),
                    0)
              << kernel->name << " " << format->name << " rows " << first << " to " << first + some;
        }
      }
      Array<float> few(kRows * kOutputs);
      call_of(kRows, input, weight, few).run(*kernel, 3);
      EXPECT_EQ(std::memcmp(few.data(), all.data(), 3 * kOutputs * sizeof(float)), 0) << kernel->name;
    }
  }
}

TEST(Matmul, RefusesWhatDoesNotFit) {
  Random random;
  Array<float> input(8), output(6);
  const PackedWeight weight = random_plain_weight(DType::bf16, {3, 4}, rows(), random);
  EXPECT_EQ(call_of(2, input, weight, output).check_error(), "");
  Call call = call_of(2, input, weight, output);
  call.info(0).shape = {2, 5};
  EXPECT_EQ(call.check_error(), "[matmul] weight: expected [3, 5], got [3, 4]");
  call = call_of(2, input, weight, output);
  call.info(2).shape = {2, 4};
  EXPECT_EQ(call.check_error(), "[matmul] output: expected [2, 3], got [2, 4]");
  call = call_of(2, input, weight, output);
  call.info(0).shape = {8};
  EXPECT_EQ(call.check_error(), "[matmul] input: expected [rows, columns], got [8]");
  call = call_of(2, input, weight, output);
  const PackedWeight vector = random_plain_weight(DType::f32, {4}, vector_f32(), random);
  call.info(1) = {true, DType::f32, Shape{4}, &vector.info, vector.layout};
  EXPECT_EQ(call.check_error(),
            "[matmul] weight: expected a weight packed for matvec or matmul, got layout vector_f32");
}

}  // namespace
}  // namespace refrain::ops
