// quantized_matmul: kernels against the reference and the layout's unpack, live rows, splits, bits that do
// not depend on the number of rows, errors.
#include "refrain/ops/quantized_matmul/quantized_matmul.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

Call call_of(uint32_t rows, const Array<float>& input, const PackedWeight& weight,
             const Array<float>& output) {
  const backend::WeightInfo& info = weight.info;
  Call call(quantized_matmul_schema);
  call.tensor({rows, info.shape[1]}, input).weight(weight).tensor({rows, info.shape[0]}, output);
  call.constants(QuantizedMatmulConstants{rows, static_cast<uint32_t>(info.shape[0]),
                                          static_cast<uint32_t>(info.shape[1]), info.bits, info.group_size,
                                          static_cast<uint32_t>(info.dtype)});
  return call;
}

std::vector<const backend::Kernel*> kernels(const Call& call) {
  std::vector<const backend::Kernel*> all, list;
  append_runnable(all, quantized_matmul_cpu_kernels());
#if defined(__x86_64__)
  append_runnable(all, quantized_matmul_cpu_avx2_kernels());
#endif
  for (const backend::Kernel* kernel : all) {
    if (call.accepted_by(*kernel)) list.push_back(kernel);
  }
  return list;
}

/// As for matmul, and the weight's own rounding: one of scale * code + bias and, in the portable kernel, one
/// of scale * code, whose size is at most 2 here (see random_affine_weight).
double tolerance(const Array<float>& input, const PackedWeight& weight, size_t index) {
  const auto n = static_cast<size_t>(weight.info.shape[0]), k = static_cast<size_t>(weight.info.shape[1]);
  double norm = 0, input_norm = 0;
  for (size_t i = 0; i < k; ++i) {
    const double x = input[index / n * k + i];
    norm += std::abs(x * weight.values[index % n * k + i]);
    input_norm += std::abs(x);
  }
  return kUnitRoundoff * ((static_cast<double>(k) / 8 + 7) * norm + 2 * input_norm);
}

struct Format {
  uint32_t bits;
  uint32_t group_size;
  DType dtype;
};

std::vector<Format> formats() {
  std::vector<Format> list;
  for (const uint32_t bits : {4u, 8u}) {
    for (const uint32_t group_size : {32u, 64u, 128u}) {
      for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
        list.push_back({bits, group_size, dtype});
    }
  }
  return list;
}

TEST(QuantizedMatmul, MatchesTheReference) {
  Random random;
  struct Size {
    uint32_t rows;
    int64_t n, groups;
  };
  for (const Format& format : formats()) {
    for (const Size& size : {Size{1, 1, 1}, Size{1, 13, 3}, Size{2, 5, 2}, Size{3, 12, 1}, Size{4, 25, 1},
                             Size{5, 7, 3}, Size{70, 14, 1}}) {
      const int64_t k = size.groups * format.group_size;
      const PackedWeight weight =
          random_affine_weight(format.dtype, size.n, k, format.bits, format.group_size, random);
      Array<float> input(size.rows * static_cast<size_t>(k));
      random.fill(input);
      const size_t count = size.rows * static_cast<size_t>(size.n);
      for (const uint32_t live : {0u, 1u, size.rows / 2, size.rows, size.rows + 3}) {
        Array<float> expected(count, -7), first(count, -7), got(count, -7);
        const Call reference = call_of(size.rows, input, weight, expected);
        reference.reference(std::min(live, size.rows));
        const auto list = kernels(reference);
        ASSERT_EQ(list.size(), machine_features() == 0 ? 1u : 2u);
        for (const backend::Kernel* kernel : list) {
          std::fill(first.begin(), first.end(), -7.0f);
          call_of(size.rows, input, weight, first).run(*kernel, live);
          EXPECT_LE(excess(expected, first, [&](size_t i) { return tolerance(input, weight, i); }), 0)
              << kernel->name << " " << size.rows << "x" << size.n << "x" << k << " group "
              << format.group_size << " live " << live;
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

TEST(QuantizedMatmul, AgreesWithTheUnpackedWeight) {
  Random random;
  for (const Format& format : formats()) {
    constexpr size_t kOutputs = 5, kColumns = 256;
    const PackedWeight weight =
        random_affine_weight(format.dtype, kOutputs, kColumns, format.bits, format.group_size, random);
    Array<float> input(kColumns), output(kOutputs), expected(kOutputs);
    random.fill(input);
    for (size_t o = 0; o < kOutputs; ++o) {
      double sum = 0;
      for (size_t k = 0; k < kColumns; ++k)
        sum += static_cast<double>(input[k]) * weight.values[o * kColumns + k];
      expected[o] = static_cast<float>(sum);
    }
    const Call call = call_of(1, input, weight, output);
    for (const backend::Kernel* kernel : kernels(call)) {
      call.run(*kernel, 1);
      // unpack() itself rounds scale * code and the sum.
      EXPECT_LE(excess(expected, output, [&](size_t i) { return 2 * tolerance(input, weight, i); }), 0)
          << kernel->name;
    }
  }
}

TEST(QuantizedMatmul, BitsOfARowDoNotDependOnTheNumberOfRows) {
  Random random;
  constexpr size_t kRows = 67, kOutputs = 17, kColumns = 256;
  Array<float> input(kRows * kColumns);
  random.fill(input);
  for (const Format& format : formats()) {
    const PackedWeight weight =
        random_affine_weight(format.dtype, kOutputs, kColumns, format.bits, format.group_size, random);
    Array<float> all(kRows * kOutputs);
    const Call whole = call_of(kRows, input, weight, all);
    for (const backend::Kernel* kernel : kernels(whole)) {
      whole.run(*kernel, kRows);
      for (const uint32_t some : {1u, 2u, 3u, 4u, 5u, 8u, 64u}) {
        for (size_t first = 0; first + some <= kRows; first += some) {
          Array<float> part(some * kColumns), output(some * kOutputs);
          std::copy_n(input.begin() + first * kColumns, part.size(), part.begin());
          call_of(some, part, weight, output).run(*kernel, some);
          ASSERT_EQ(std::memcmp(output.data(), all.data() + first * kOutputs, output.size() * sizeof(float)),
                    0)
              << kernel->name << " rows " << first << " to " << first + some;
        }
      }
    }
  }
}

TEST(QuantizedMatmul, RefusesWhatDoesNotFit) {
  Random random;
  Array<float> input(64), output(6);
  const PackedWeight weight = random_affine_weight(DType::bf16, 3, 32, 4, 32, random);
  EXPECT_EQ(call_of(2, input, weight, output).check_error(), "");
  Call call = call_of(2, input, weight, output);
  call.info(0).shape = {1, 64};
  EXPECT_EQ(call.check_error(), "[quantized_matmul] weight: expected [3, 64], got [3, 32]");
  call = call_of(2, input, weight, output);
  call.constants(QuantizedMatmulConstants{2, 3, 32, 8, 32, static_cast<uint32_t>(DType::bf16)});
  EXPECT_EQ(call.check_error(), "[quantized_matmul] bits: expected 4, got 8");
  const PackedWeight plain = random_plain_weight(DType::bf16, {3, 32}, rows(), random);
  EXPECT_EQ(call_of(2, input, plain, output).check_error(),
            "[quantized_matmul] weight: expected a mlx_affine weight, got a plain weight");
}

}  // namespace
}  // namespace refrain::ops
