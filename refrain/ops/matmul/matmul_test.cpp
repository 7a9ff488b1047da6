// matmul: kernels against the reference, live rows, splits, bits that do not depend on the number of rows,
// errors.
#include "refrain/ops/matmul/matmul.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

std::vector<const backend::Kernel*> kernels(DType dtype) {
  std::vector<const backend::Kernel*> all, list;
  append_runnable(all, matmul_cpu_kernels());
#if defined(__x86_64__)
  append_runnable(all, matmul_cpu_avx2_kernels());
#endif
  std::string part(name(dtype));
  part.append("_").insert(part.begin(), '_');
  for (const backend::Kernel* kernel : all) {
    if (kernel->name.find(part) != std::string_view::npos) list.push_back(kernel);
  }
  return list;
}

Call call_of(uint32_t rows, const Array<float>& input, const PackedWeight& weight,
             const Array<float>& output) {
  const int64_t n = weight.info.shape[0], k = weight.info.shape[1];
  Call call(matmul_schema);
  call.tensor({rows, k}, input).weight(weight).tensor({rows, n}, output);
  call.constants(MatmulConstants{rows, static_cast<uint32_t>(n), static_cast<uint32_t>(k),
                                 static_cast<uint32_t>(weight.info.dtype)});
  return call;
}

/// Each of 8 lanes or more adds at most ceil(K / 8) products, one rounding each; the portable kernel rounds
/// products too but has 16 lanes; then at most 4 sums of lanes, and the reference's rounding.
double tolerance(const Array<float>& input, const PackedWeight& weight, size_t index) {
  const auto n = static_cast<size_t>(weight.info.shape[0]), k = static_cast<size_t>(weight.info.shape[1]);
  double norm = 0;
  for (size_t i = 0; i < k; ++i) {
    norm += std::abs(static_cast<double>(input[index / n * k + i]) * weight.values[index % n * k + i]);
  }
  return (static_cast<double>(k) / 8 + 6) * kUnitRoundoff * norm;
}

TEST(Matmul, MatchesTheReference) {
  Random random;
  struct Size {
    uint32_t rows;
    int64_t n, k;
  };
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    ASSERT_FALSE(kernels(dtype).empty());
    for (const Size& size :
         {Size{1, 1, 1}, Size{1, 13, 7}, Size{2, 5, 64}, Size{3, 12, 33}, Size{4, 25, 40}, Size{5, 3, 9},
          Size{7, 37, 130}, Size{70, 26, 65}, Size{130, 14, 31}, Size{1, 300, 512}}) {
      const PackedWeight weight = random_plain_weight(dtype, {size.n, size.k}, rows(), random);
      Array<float> input(size.rows * static_cast<size_t>(size.k));
      random.fill(input);
      const size_t count = size.rows * static_cast<size_t>(size.n);
      for (const uint32_t live : {0u, 1u, size.rows / 2, size.rows, size.rows + 3}) {
        Array<float> expected(count, -7), first(count, -7), got(count, -7);
        call_of(size.rows, input, weight, expected).reference(std::min(live, size.rows));
        for (const backend::Kernel* kernel : kernels(dtype)) {
          std::fill(first.begin(), first.end(), -7.0f);
          call_of(size.rows, input, weight, first).run(*kernel, live);
          EXPECT_LE(excess(expected, first, [&](size_t i) { return tolerance(input, weight, i); }), 0)
              << kernel->name << " " << size.rows << "x" << size.n << "x" << size.k << " live " << live;
          for (size_t i = std::min(live, size.rows) * static_cast<size_t>(size.n); i < count; ++i) {
            ASSERT_EQ(first[i], -7);
          }
          for (const Walk& walk : kWalks) {
            std::fill(got.begin(), got.end(), -7.0f);
            call_of(size.rows, input, weight, got).run(*kernel, live, walk);
            EXPECT_TRUE(same_bits(first, got)) << kernel->name;
          }
        }
      }
    }
  }
}

TEST(Matmul, BitsOfARowDoNotDependOnTheNumberOfRows) {
  Random random;
  constexpr size_t kRows = 67, kOutputs = 29, kColumns = 203;
  Array<float> input(kRows * kColumns);
  random.fill(input);
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const PackedWeight weight = random_plain_weight(dtype, {kOutputs, kColumns}, rows(), random);
    for (const backend::Kernel* kernel : kernels(dtype)) {
      Array<float> all(kRows * kOutputs);
      call_of(kRows, input, weight, all).run(*kernel, kRows);
      for (const uint32_t some : {1u, 2u, 3u, 4u, 5u, 8u, 11u, 64u}) {
        for (size_t first = 0; first + some <= kRows; first += some) {
          Array<float> part(some * kColumns), output(some * kOutputs);
          std::copy_n(input.begin() + first * kColumns, part.size(), part.begin());
          call_of(some, part, weight, output).run(*kernel, some);
          ASSERT_EQ(std::memcmp(output.data(), all.data() + first * kOutputs, output.size() * sizeof(float)),
                    0)
              << kernel->name << " rows " << first << " to " << first + some;
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
  call.constants(MatmulConstants{2, 3, 4, static_cast<uint32_t>(DType::f16)});
  EXPECT_EQ(call.check_error(), "[matmul] dtype: expected 2, got 1");
  const PackedWeight affine = random_affine_weight(DType::bf16, 3, 32, 4, 32, random);
  Array<float> wide(64);
  EXPECT_EQ(call_of(2, wide, affine, output).check_error(),
            "[matmul] weight: expected a plain weight, got a mlx_affine weight");
}

}  // namespace
}  // namespace refrain::ops
