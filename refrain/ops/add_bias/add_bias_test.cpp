// add_bias: kernels against the reference, exactly; live rows, splits, aliasing, errors.
#include "refrain/ops/add_bias/add_bias.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

Call call_of(const Shape& shape, const Array<float>& input, const PackedWeight& bias,
             const Array<float>& output) {
  Call call(add_bias_schema);
  return call.tensor(shape, input).weight(bias).tensor(shape, output).constants(AddBiasConstants{});
}

TEST(AddBias, IsTheReferenceExactly) {
  Random random;
  const DType dtypes[] = {DType::f32, DType::bf16, DType::f16};
  size_t turn = 0;
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 7}, Shape{5, 1024}, Shape{2, 9001}, Shape{70, 257}}) {
    const auto count = static_cast<size_t>(shape.elements());
    const auto rows = static_cast<uint32_t>(shape[0]);
    Array<float> input(count);
    random.fill(input, -3, 3);
    const PackedWeight bias = random_plain_weight(dtypes[turn++ % 3], {shape.back()}, vector_f32(), random);
    for (const uint32_t live : {0u, 1u, rows / 2, rows, rows + 3}) {
      Array<float> expected(count, -7);
      call_of(shape, input, bias, expected).reference(std::min(live, rows));
      for (const backend::Kernel* kernel : kernels_of(add_bias_schema)) {
        Array<float> in_place = input;
        for (const Walk& walk : kWalks) {
          Array<float> got(count, -7);
          call_of(shape, input, bias, got).run(*kernel, live, walk);
          EXPECT_TRUE(same_bits(expected, got))
              << kernel->name << " " << to_string(shape) << " live " << live;
        }
        call_of(shape, in_place, bias, in_place).run(*kernel, live);
        for (size_t i = 0; i < count; ++i)
          ASSERT_EQ(in_place[i], i < std::min(live, rows) * (count / rows) ? expected[i] : input[i]);
      }
    }
  }
}

TEST(AddBias, CheckNamesWhatIsWrong) {
  Random random;
  const PackedWeight bias = random_plain_weight(DType::f32, {5}, vector_f32(), random);
  const Array<float> values(10);
  const Call good = call_of({2, 5}, values, bias, values);
  EXPECT_EQ(good.check_error(), "");
  EXPECT_EQ(call_of({5, 2}, values, bias, values).check_error(), "[add_bias] bias: expected [2], got [5]");
  Call output = good;
  output.info(2).shape = {1, 5};
  EXPECT_EQ(output.check_error(), "[add_bias] output: expected [2, 5], got [1, 5]");
  Call none = good;
  none.info(1).bound = false;
  EXPECT_EQ(none.check_error(), "[add_bias] bias: expected an operand, got none");
}

}  // namespace
}  // namespace refrain::ops
