// What all formats share, and GGML's blocks by hand; tests/golden compares the decoding bit for bit with MLX and gguf.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/format/encoded.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/plain.h"
#include "refrain/format/q4_0.h"
#include "refrain/format/q8_0.h"

namespace refrain::format {
namespace {

std::string error_of(const TensorSource& source) {
  try {
    decode(source);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "";
}

/// A tensor of one part.
TensorSource blocks(const WeightFormat& format, const Shape& shape, std::span<const std::byte> bytes) {
  return {"w", &format, shape, {{DType::u8, {static_cast<int64_t>(bytes.size())}, bytes}}, nullptr};
}

TEST(Formats, PlainElementsWiden) {
  EXPECT_EQ(plain(DType::bf16).name, "bf16");
  const uint16_t one_and_a_half[] = {0x3FC0, 0x3E00};
  const auto bytes = std::as_bytes(std::span(one_and_a_half));
  EXPECT_EQ(decode(plain_tensor("w", DType::bf16, {2}, bytes)), (std::vector<float>{1.5f, 0.125f}));
  EXPECT_EQ(decode(plain_tensor("w", DType::f16, {1, 2}, bytes)), (std::vector<float>{1.9375f, 1.5f}));
  EXPECT_EQ(error_of(plain_tensor("w", DType::i16, {2}, bytes)),
            "[format] w: i16: expected a format of floating-point values");
}

TEST(Formats, ValuesAreTheSameHoweverTheyAreStored) {
  const auto bytes_of = [](const auto& values) { return std::as_bytes(std::span(values)); };
  const float floats[] = {1.5f, 0.125f, -0.0f, 2.0f, 3.0f, 4.0f};
  std::array<bf16, 6> halves, others;
  for (size_t i = 0; i < 6; ++i) halves[i] = others[i] = bf16::from_float(floats[i]);
  const auto of_floats = [&](const Shape& shape) {
    return plain_tensor("w", DType::f32, shape, bytes_of(floats));
  };
  const auto of_halves = [&](const auto& values) {
    return plain_tensor("w", DType::bf16, {3, 2}, bytes_of(values));
  };
  EXPECT_TRUE(same_values(of_floats({3, 2}), of_floats({3, 2})));
  EXPECT_TRUE(same_values(of_floats({3, 2}), of_halves(halves)));
  EXPECT_FALSE(same_values(of_floats({2, 3}), of_halves(halves)));
  for (size_t i = 0; i < 6; ++i) {
    others = halves;
    others[i] = bf16::from_float(-floats[i]);
    EXPECT_FALSE(same_values(of_floats({3, 2}), of_halves(others))) << i;
    EXPECT_FALSE(same_values(of_halves(halves), of_halves(others))) << i;
  }
  const std::vector<float> whole(64, 3.0f);
  const EncodedTensor coded = encode(mlx_affine({4, 32}, DType::f32), {1, 64}, whole);
  EXPECT_TRUE(same_values(coded.source("w"), plain_tensor("w", DType::f32, {1, 64}, bytes_of(whole))));
  const auto codes = plain_tensor("w", DType::u32, {3, 2}, bytes_of(floats));
  EXPECT_TRUE(same_values(codes, codes));
  EXPECT_FALSE(same_values(codes, of_floats({3, 2}))) << "which are no values";
}

TEST(Formats, Q4_0HasTheLowerHalvesFirst) {
  std::vector<std::byte> block(18);
  const uint16_t half = f16::from_float(0.5f).bits;
  std::memcpy(block.data(), &half, 2);
  block[2] = std::byte{0xF0};       // element 0: 0, element 16: 15
  block[2 + 15] = std::byte{0x19};  // element 15: 9, element 31: 1
  const std::vector<float> values = decode(blocks(q4_0(), {1, 32}, block));
  EXPECT_EQ(values[0], -4.0f);
  EXPECT_EQ(values[16], 3.5f);
  EXPECT_EQ(values[15], 0.5f);
  EXPECT_EQ(values[31], -3.5f);
}

TEST(Formats, Q8_0HasSignedCodes) {
  std::vector<std::byte> block(34);
  const uint16_t half = f16::from_float(-0.5f).bits;
  std::memcpy(block.data(), &half, 2);
  block[2] = std::byte{0x80};
  block[33] = std::byte{0x7F};
  const std::vector<float> values = decode(blocks(q8_0(), {32}, block));
  EXPECT_EQ(values[0], 64.0f);
  EXPECT_EQ(values[31], -63.5f);
}

TEST(Formats, SeparatedCodesTimesTheScaleAreTheValues) {
  for (const WeightFormat* format : {&q4_0(), &q8_0()}) {
    std::vector<std::byte> block(format->parts[0].block_bytes());
    for (size_t i = 0; i < block.size(); ++i) block[i] = std::byte(37 * i + 11);
    block[1] = std::byte{0x3C};  // a scale of 1 and a little
    const std::vector<float> values = decode(blocks(*format, {32}, block));
    std::vector<std::byte> codes(32 * format->bits / 8);
    f16 scale;
    format->separate(block.data(), codes.data(), reinterpret_cast<std::byte*>(&scale));
    for (size_t i = 0; i < values.size(); ++i) {
      const auto bits = std::to_integer<uint32_t>(codes[i * format->bits / 8]) >> i * format->bits % 8;
      const auto shifted = static_cast<int32_t>(bits << (32 - format->bits));  // the sign bit comes first
      EXPECT_EQ(scale.to_float() * static_cast<float>(shifted >> (32 - format->bits)), values[i])
          << format->name << " " << i;
    }
  }
}

TEST(Formats, RefuseWhatDoesNotFit) {
  const std::vector<std::byte> bytes(68);
  EXPECT_EQ(error_of(blocks(q8_0(), {2, 32}, bytes)), "");
  EXPECT_EQ(error_of(blocks(q8_0(), {2, 33}, bytes)),
            "[format] w: q8_0: expected rows of a multiple of 32 elements, got 33");
  EXPECT_EQ(error_of(blocks(q8_0(), {3, 32}, bytes)),
            "[format] w: q8_0: expected 102 bytes in segment 0, got 68");
  EXPECT_EQ(error_of(blocks(mlx_affine({}, DType::bf16), {1, 64}, bytes)),
            "[format] w: mlx_affine4_g64_bf16: expected 3 segments, got 1");
  EXPECT_EQ(error_of({"w", nullptr, {2, 32}, {}, nullptr}), "[format] w: expected a format, got none");
  EXPECT_EQ(error_of(blocks(plain(DType::f64), {int64_t{1} << 61, 2}, {})),
            "[format] w: expected fewer elements, got [2305843009213693952, 2]");
  const std::vector<float> values(64);
  EXPECT_THROW(encode(q8_0(), {64}, values), InvalidArgument) << "it cannot be made";
  EXPECT_THROW(encode(mlx_affine({}, DType::f32), {128}, values), InvalidArgument);
  EXPECT_THROW(encode(mlx_affine({}, DType::f32), {2, 32}, values), InvalidArgument);
}

TEST(Formats, PartsHaveTheShapesOfTheirFiles) {
  const Shape shape{6, 256};
  const WeightFormat& affine = mlx_affine({3, 32}, DType::f16);
  EXPECT_EQ(part_of(affine, shape, 0).shape, (Shape{6, 24}));
  EXPECT_EQ(part_of(affine, shape, 0).dtype, DType::u32);
  EXPECT_EQ(part_of(affine, shape, 2).shape, (Shape{6, 8}));
  EXPECT_EQ(part_of(affine, shape, 2).dtype, DType::f16);
  EXPECT_EQ(part_of(q4_0(), shape, 0).shape, (Shape{6, 144}));
}

}  // namespace
}  // namespace refrain::format
