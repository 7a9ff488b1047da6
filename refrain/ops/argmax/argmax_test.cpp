// Argmax: every kernel gives the reference's index; ties, NaNs, infinities.
#include "refrain/ops/argmax/argmax.h"

#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<const backend::Kernel*> kernels() { return kernels_of(argmax_schema); }

Call make_call(uint32_t rows, uint32_t columns, const Array<float>& input, const Array<uint32_t>& output) {
  Call call(argmax_schema);
  call.tensor({rows, columns}, input).tensor({rows}, output);
  return call;
}

uint32_t argmax_of(const backend::Kernel& kernel, const std::vector<float>& values) {
  const Array<float> input(values.size());
  std::copy(values.begin(), values.end(), input.begin());
  const Array<uint32_t> output(1, 77);
  make_call(1, static_cast<uint32_t>(values.size()), input, output).run(kernel, 1);
  return output[0];
}

TEST(Argmax, EveryKernelGivesTheReferencesIndex) {
  Random random(11);
  for (const uint32_t columns : {1u, 2u, 7u, 8u, 9u, 31u, 32u, 33u, 63u, 64u, 65u, 1000u, 4099u}) {
    constexpr uint32_t kRows = 23;
    for (const uint32_t levels : {2u, 5u, 1u << 24}) {  // few levels: many ties
      const Array<float> input(size_t{kRows} * columns);
      for (float& value : input) {
        value = static_cast<float>(random.below(levels)) - static_cast<float>(levels) * 0.75f;
        if (random.below(16) == 0) value = random.below(2) == 0 ? kNan : -kInf;
      }
      const Array<uint32_t> expected(kRows, 77);
      make_call(kRows, columns, input, expected).reference(kRows);
      for (const backend::Kernel* kernel : kernels()) {
        for (const Walk& walk : kWalks) {
          const Array<uint32_t> output(kRows, 77);
          make_call(kRows, columns, input, output).run(*kernel, kRows, walk);
          EXPECT_TRUE(same_bits(output, expected)) << kernel->name << ' ' << columns;
        }
        const Array<uint32_t> some(kRows, 77);
        make_call(kRows, columns, input, some).run(*kernel, 4);
        for (uint32_t r = 0; r < kRows; ++r) EXPECT_EQ(some[r], r < 4 ? expected[r] : 77u);
      }
    }
  }
}

TEST(Argmax, TheMaximumIsFoundAtEveryPlace) {
  for (const backend::Kernel* kernel : kernels()) {
    for (size_t place = 0; place < 100; ++place) {
      std::vector<float> values(100, -3.0f);
      values[place] = -2.5f;
      EXPECT_EQ(argmax_of(*kernel, values), place) << kernel->name;
    }
  }
}

TEST(Argmax, TiesNansInfinitiesAndZeros) {
  for (const backend::Kernel* kernel : kernels()) {
    EXPECT_EQ(argmax_of(*kernel, {1, 3, 2, 3}), 1u);
    EXPECT_EQ(argmax_of(*kernel, {kNan, kNan, kNan}), 0u);
    EXPECT_EQ(argmax_of(*kernel, {kNan, -kInf, -kInf}), 1u);
    EXPECT_EQ(argmax_of(*kernel, {kNan, -5, kNan, 4, kNan}), 3u);
    EXPECT_EQ(argmax_of(*kernel, {-kInf, kInf, kInf, kNan}), 1u);
    EXPECT_EQ(argmax_of(*kernel, {-0.0f, 0.0f}), 0u);
    EXPECT_EQ(argmax_of(*kernel, {0.0f, -0.0f}), 0u);
    EXPECT_EQ(argmax_of(*kernel, std::vector<float>(40, -kInf)), 0u);
    std::vector<float> late(41, kNan);
    late[40] = -kInf;
    EXPECT_EQ(argmax_of(*kernel, late), 40u);
  }
}

TEST(Argmax, CheckNamesWhatIsWrong) {
  const Array<float> input(12);
  const Array<uint32_t> output(3);
  EXPECT_EQ(make_call(3, 4, input, output).check_error(), "");
  Call shape = make_call(3, 4, input, output);
  shape.info(1).shape = {4};
  EXPECT_EQ(shape.check_error(), "[argmax] output: expected [3], got [4]");
  Call dtype = make_call(3, 4, input, output);
  dtype.info(1).dtype = DType::f32;
  EXPECT_NE(dtype.check_error(), "");
  Call rank = make_call(3, 4, input, output);
  rank.info(0).shape = {12};
  EXPECT_NE(rank.check_error(), "");
}

}  // namespace
}  // namespace refrain::ops
