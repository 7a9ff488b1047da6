// add: kernels against the reference, live rows, splits, aliasing, errors.
#include "refrain/ops/add/add.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

std::vector<const backend::Kernel*> kernels() { return kernels_of(add_schema); }

Call call_of(const Shape& shape, const Array<float>& a, const Array<float>& b, const Array<float>& output) {
  Call call(add_schema);
  call.tensor(shape, a).tensor(shape, b).tensor(shape, output);
  const auto rows = static_cast<uint32_t>(shape[0]);
  call.constants(AddConstants{rows, static_cast<uint32_t>(shape.elements()) / rows});
  return call;
}

TEST(Add, MatchesTheReferenceBitForBit) {
  Random random;
  for (const Shape& shape : {Shape{1}, Shape{7}, Shape{1, 1}, Shape{3, 7}, Shape{2, 3, 5}, Shape{5, 4096},
                             Shape{2, 20000}, Shape{1, 16384}, Shape{70, 257}}) {
    const auto count = static_cast<size_t>(shape.elements());
    const auto rows = static_cast<uint32_t>(shape[0]);
    Array<float> a(count), b(count);
    random.fill(a);
    random.fill(b, -100, 100);
    for (const uint32_t live : {0u, 1u, rows / 2, rows, rows + 3}) {
      Array<float> expected(count, -7), got(count, -7);
      call_of(shape, a, b, expected).reference(std::min(live, rows));
      for (const backend::Kernel* kernel : kernels()) {
        for (const Walk& walk : kWalks) {
          std::fill(got.begin(), got.end(), -7.0f);
          call_of(shape, a, b, got).run(*kernel, live, walk);
          EXPECT_TRUE(same_bits(expected, got))
              << kernel->name << " " << to_string(shape) << " live " << live;
        }
      }
    }
  }
}

TEST(Add, OutputMayBeEitherArgument) {
  Random random;
  const Shape shape{3, 1001};
  Array<float> a(3003), b(3003), expected(3003);
  random.fill(a);
  random.fill(b);
  call_of(shape, a, b, expected).reference(3);
  for (const backend::Kernel* kernel : kernels()) {
    Array<float> in_place = a;
    call_of(shape, in_place, b, in_place).run(*kernel, 3);
    EXPECT_TRUE(same_bits(expected, in_place)) << kernel->name;
    in_place = b;
    call_of(shape, a, in_place, in_place).run(*kernel, 3);
    EXPECT_TRUE(same_bits(expected, in_place)) << kernel->name;
  }
}

TEST(Add, RefusesWhatDoesNotFit) {
  Array<float> data(6);
  Call call = call_of({2, 3}, data, data, data);
  EXPECT_EQ(call.check_error(), "");
  call.info(0).dtype = DType::activation;
  EXPECT_EQ(call.check_error(), "");
  call.info(1).shape = {3, 2};
  EXPECT_EQ(call.check_error(), "[add] b: expected [2, 3], got [3, 2]");
  call.info(1) = call.info(0);
  call.info(2).dtype = DType::f16;
  EXPECT_EQ(call.check_error(), "[add] output: expected f32, got f16");
  call.info(2).bound = false;
  EXPECT_EQ(call.check_error(), "[add] output: expected an operand, got none");
  call = call_of({2, 3}, data, data, data);
  call.constants(AddConstants{2, 4});
  EXPECT_EQ(call.check_error(), "[add] columns: expected 3, got 4");
  Array<float> none(0);
  call = call_of({2, 3}, data, data, data);
  for (size_t i = 0; i < 3; ++i) call.info(i).shape = {0, 3};
  EXPECT_EQ(call.check_error(), "[add] a: expected [rows, ...], got [0, 3]");
}

}  // namespace
}  // namespace refrain::ops
