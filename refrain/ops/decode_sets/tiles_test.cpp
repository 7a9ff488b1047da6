// tiles_4x1024: what packing keeps, in whole and in ranges, and whom it takes.
#include "refrain/ops/decode_sets/tiles.h"

#include "refrain/backend/features.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;
using backend::Use;

constexpr int64_t kRows[] = {1, 3, 4, 5, 9};
constexpr int64_t kColumns[] = {64, 960, 1024, 1088, 2112};

TEST(Tiles, UnpackGivesWhatTheFormatDecodesTo) {
  Random random;
  for (const int64_t rows : kRows) {
    for (const int64_t columns : kColumns) {
      const format::EncodedTensor tensor =
          random_tensor(format::mlx_affine({4, 64}, DType::bf16), {rows, columns}, random);
      const TensorSource source = tensor.source("w");
      const PackedWeight weight = pack(source, tiles_4x1024());
      EXPECT_EQ(weight.bytes.size() % kTileBytes, 0u);
      const std::vector<float> expected = format::decode(source);
      std::vector<float> values(expected.size());
      tiles_4x1024().unpack(weight.info, weight.bytes.data(), {0, static_cast<size_t>(rows)}, values.data());
      EXPECT_EQ(values, expected) << rows << " by " << columns;
      tiles_4x1024().unpack(weight.info, weight.bytes.data(),
                            {static_cast<size_t>(rows - 1), static_cast<size_t>(rows)}, values.data());
      EXPECT_EQ(values[0], expected[static_cast<size_t>((rows - 1) * columns)]);
    }
  }
}

TEST(Tiles, RangesOfRowsFillEachByteOnce) {
  Random random;
  const format::EncodedTensor tensor =
      random_tensor(format::mlx_affine({4, 64}, DType::bf16), {37, 1088}, random);
  const TensorSource source = tensor.source("w");
  const PackedWeight whole = pack(source, tiles_4x1024());
  for (const size_t part : {4, 12, 36, 40}) {
    std::vector<std::byte> packed(whole.bytes.size(), std::byte{0xEE});
    std::vector<int> filled(packed.size());
    const backend::PackedBytes target = [&](size_t offset, size_t count) {
      for (size_t i = 0; i < count; ++i) ++filled[offset + i];
      return std::span(packed).subspan(offset, count);
    };
    for (size_t begin = 0; begin < 37; begin += part)
      tiles_4x1024().pack(source, whole.info, {begin, std::min<size_t>(begin + part, 37)}, target);
    EXPECT_TRUE(std::ranges::equal(packed, whole.bytes)) << part;
    EXPECT_EQ(std::ranges::count(filled, 1), static_cast<ptrdiff_t>(packed.size())) << part;
  }
}

TEST(Tiles, TakesFourBitsInGroupsOf64WithScalesInBf16) {
  const auto accepts = [](const WeightFormat& format, const Shape& shape, backend::Uses uses) {
    return tiles_4x1024().accepts({&format, shape}, uses);
  };
  const WeightFormat& four = format::mlx_affine({4, 64}, DType::bf16);
  EXPECT_TRUE(accepts(four, {4, 64}, {Use::matvec, Use::matmul, Use::gather}));
  EXPECT_FALSE(accepts(four, {4, 64}, {Use::vector}));
  EXPECT_TRUE(accepts(four, {4, 32768}, {Use::matvec}));
  EXPECT_FALSE(accepts(four, {4, 32832}, {Use::matvec})) << "more than a block holds of a row";
  EXPECT_FALSE(accepts(format::mlx_affine({8, 64}, DType::bf16), {4, 64}, {Use::matvec}));
  EXPECT_FALSE(accepts(format::mlx_affine({4, 32}, DType::bf16), {4, 64}, {Use::matvec}));
  EXPECT_FALSE(accepts(format::mlx_affine({4, 64}, DType::f16), {4, 64}, {Use::matvec}));
  EXPECT_FALSE(accepts(format::q4_0(), {4, 64}, {Use::matvec}));
  EXPECT_FALSE(accepts(format::plain(DType::bf16), {4, 64}, {Use::matvec}));
  EXPECT_EQ(tiles_4x1024().needs, backend::kFeatureFast | backend::kFeatureHopper)
      << "nobody who asks for exact arithmetic may meet it, nor a device without the kernels that read it";
}

}  // namespace
}  // namespace refrain::ops
