// What can be said of the affine quantization without MLX; tests/golden compares it bit for bit.
#include "refrain/format/mlx_affine.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/format/encoded.h"

namespace refrain::format {
namespace {

std::vector<float> floats(const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

EncodedTensor quantize(const std::vector<float>& values, AffineParameters p) {
  return encode(mlx_affine(p, DType::f32), {static_cast<int64_t>(values.size())}, values);
}

std::vector<float> restored(const std::vector<float>& values, AffineParameters p) {
  return decode(quantize(values, p).source("w"));
}

TEST(MlxAffine, PacksElementIAtBitITimesBits) {
  std::vector<float> values(32);
  for (int i = 0; i < 32; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i % 16);
  const EncodedTensor packed = quantize(values, {4, 32});
  // The range is 0 to 15 and the edge 15, so the scale is -1, the bias 15 and the code 15 - w.
  EXPECT_EQ(floats(packed.parts[1])[0], -1.0f);
  EXPECT_EQ(floats(packed.parts[2])[0], 15.0f);
  const uint32_t codes[] = {0x89ABCDEFu, 0x01234567u, 0x89ABCDEFu, 0x01234567u};
  ASSERT_EQ(packed.parts[0].size(), sizeof(codes));
  EXPECT_EQ(std::memcmp(packed.parts[0].data(), codes, sizeof(codes)), 0);
}

TEST(MlxAffine, RestoresWithinHalfAStepForEveryWidth) {
  uint32_t state = 1;
  for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
    for (const uint32_t group : {32u, 64u, 128u}) {
      std::vector<float> values(512);
      for (float& w : values) {
        state = state * 1664525u + 1013904223u;
        w = static_cast<float>(state >> 8) / 16777216.0f - 0.4f;
      }
      const AffineParameters p{bits, group};
      const std::vector<float> got = restored(values, p);
      // Moving the scale so that zero has a code changes the range by up to half a step at either end.
      const float step = 1.0f / static_cast<float>((1u << bits) - 1);
      for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(got[i], values[i], 1.51f * step) << bits;
    }
  }
}

TEST(MlxAffine, MapsZeroExactly) {
  std::vector<float> values(64, 0.0f);
  values[3] = 0.37f;
  values[40] = -0.11f;
  const AffineParameters p{4, 64};
  const std::vector<float> got = restored(values, p);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == 0.0f) {
      EXPECT_NEAR(got[i], 0.0f, 1e-7f);
    }
  }
}

TEST(MlxAffine, ReportsWhatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values(64, 1.0f);
    EXPECT_NO_THROW(quantize(values, {4, 32}));
    values[63] = bad;
    EXPECT_THROW(quantize(values, {4, 32}), InvalidArgument);
  }
}

TEST(MlxAffine, TakesAnyAddress) {
  std::vector<float> values(64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) - 20;
  const WeightFormat& format = mlx_affine({4, 32}, DType::bf16);
  const EncodedTensor aligned = encode(format, {64}, values);
  std::array<std::array<std::byte, 33>, 3> shifted;
  std::byte* const parts[] = {&shifted[0][1], &shifted[1][1], &shifted[2][1]};
  EXPECT_TRUE(format.encode(format, values.data(), 2, parts));
  for (size_t i = 0; i < 3; ++i)
    EXPECT_TRUE(std::equal(aligned.parts[i].begin(), aligned.parts[i].end(), parts[i])) << i;
  std::vector<float> decoded(64);
  const std::byte* const from[] = {parts[0], parts[1], parts[2]};
  format.decode(format, from, 2, decoded.data());
  EXPECT_EQ(decoded, decode(aligned.source("w")));
}

TEST(MlxAffine, HasAFormatForWhatMlxDefines) {
  EXPECT_EQ(mlx_affine({3, 128}, DType::f16).name, "mlx_affine3_g128_f16");
  EXPECT_EQ(&mlx_affine({4, 64}, DType::bf16), &mlx_affine({}, DType::bf16));
  EXPECT_THROW(mlx_affine({4, 64}, DType::u32), InvalidArgument);
  EXPECT_THROW(mlx_affine({7, 64}, DType::f32), InvalidArgument);
  EXPECT_THROW(mlx_affine({4, 16}, DType::f32), InvalidArgument);
}

}  // namespace
}  // namespace refrain::format
