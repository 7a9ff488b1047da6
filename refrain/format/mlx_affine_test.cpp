// What can be said of the affine quantization without MLX; tests/golden compares it bit for bit.
#include "refrain/format/mlx_affine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/core/half.h"

namespace refrain::format {
namespace {

struct Packed {
  std::vector<uint32_t> codes;
  std::vector<float> scales, biases;
  bool finite;
};

Packed quantize(const std::vector<float>& values, AffineParameters p) {
  Packed packed{std::vector<uint32_t>(affine_words(values.size(), p)),
                std::vector<float>(values.size() / p.group_size),
                std::vector<float>(values.size() / p.group_size), false};
  packed.finite = affine_quantize(DType::f32, std::as_bytes(std::span(values)), p, packed.codes,
                                  std::as_writable_bytes(std::span(packed.scales)),
                                  std::as_writable_bytes(std::span(packed.biases)));
  return packed;
}

std::vector<float> dequantize(const Packed& packed, AffineParameters p) {
  std::vector<float> values(packed.scales.size() * p.group_size);
  affine_dequantize(DType::f32, std::as_bytes(std::span(packed.codes)),
                    std::as_bytes(std::span(packed.scales)), std::as_bytes(std::span(packed.biases)), p,
                    values);
  return values;
}

TEST(MlxAffine, PacksElementIAtBitITimesBits) {
  std::vector<float> values(32);
  for (int i = 0; i < 32; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i % 16);
  const Packed packed = quantize(values, {4, 32});
  // The range is 0 to 15 and the edge 15, so the scale is -1, the bias 15 and the code 15 - w.
  EXPECT_EQ(packed.scales[0], -1.0f);
  EXPECT_EQ(packed.biases[0], 15.0f);
  EXPECT_EQ(packed.codes, (std::vector<uint32_t>{0x89ABCDEFu, 0x01234567u, 0x89ABCDEFu, 0x01234567u}));
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
      const std::vector<float> restored = dequantize(quantize(values, p), p);
      // Moving the scale so that zero has a code changes the range by up to half a step at either end.
      const float step = 1.0f / static_cast<float>((1u << bits) - 1);
      for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(restored[i], values[i], 1.51f * step) << bits;
    }
  }
}

TEST(MlxAffine, MapsZeroExactly) {
  std::vector<float> values(64, 0.0f);
  values[3] = 0.37f;
  values[40] = -0.11f;
  const AffineParameters p{4, 64};
  const std::vector<float> restored = dequantize(quantize(values, p), p);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == 0.0f) {
      EXPECT_NEAR(restored[i], 0.0f, 1e-7f);
    }
  }
}

TEST(MlxAffine, ReportsWhatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values(64, 1.0f);
    EXPECT_TRUE(quantize(values, {4, 32}).finite);
    values[63] = bad;
    EXPECT_FALSE(quantize(values, {4, 32}).finite);
  }
}

TEST(MlxAffine, TakesAnyAddress) {
  std::vector<bf16> values(64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = bf16::from_float(static_cast<float>(i) - 20);
  std::vector<std::byte> shifted(129), scales(5), biases(5), scales_aligned(4), biases_aligned(4);
  std::memcpy(shifted.data() + 1, values.data(), 128);
  std::vector<uint32_t> codes(8), codes_aligned(8);
  const AffineParameters p{4, 32};
  EXPECT_TRUE(affine_quantize(DType::bf16, std::span(shifted).subspan(1), p, codes,
                              std::span(scales).subspan(1), std::span(biases).subspan(1)));
  EXPECT_TRUE(affine_quantize(DType::bf16, std::as_bytes(std::span(values)), p, codes_aligned, scales_aligned,
                              biases_aligned));
  EXPECT_EQ(codes, codes_aligned);
  EXPECT_TRUE(std::equal(scales.begin() + 1, scales.end(), scales_aligned.begin()));
  EXPECT_TRUE(std::equal(biases.begin() + 1, biases.end(), biases_aligned.begin()));
}

TEST(MlxAffine, RefusesWhatDoesNotFit) {
  std::vector<uint32_t> codes(8);
  std::vector<std::byte> values(256), pair(4);
  const auto call = [&](DType dtype, AffineParameters p, size_t values_bytes, size_t words,
                        size_t pair_bytes) {
    affine_quantize(dtype, std::span(values).first(values_bytes), p, std::span(codes).first(words),
                    std::span(pair).first(pair_bytes), std::span(pair).first(pair_bytes));
  };
  EXPECT_NO_THROW(call(DType::f32, {4, 64}, 256, 8, 4));
  EXPECT_THROW(call(DType::u32, {4, 64}, 256, 8, 4), InvalidArgument);
  EXPECT_THROW(call(DType::activation, {4, 64}, 0, 0, 0), InvalidArgument);
  EXPECT_THROW(call(DType::f32, {7, 64}, 256, 8, 4), InvalidArgument);
  EXPECT_THROW(call(DType::f32, {4, 16}, 256, 8, 4), InvalidArgument);
  EXPECT_THROW(call(DType::f32, {4, 64}, 128, 4, 4), InvalidArgument);
  EXPECT_THROW(call(DType::f32, {4, 64}, 256, 7, 4), InvalidArgument);
  EXPECT_THROW(call(DType::f32, {4, 64}, 256, 8, 3), InvalidArgument);
}

}  // namespace
}  // namespace refrain::format
