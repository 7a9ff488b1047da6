// Weights without a file: whole tensors of their format, whose rows have a norm of about one; and a cache of nothing.
#include "refrain/model/random_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "refrain/format/encoded.h"
#include "refrain/model/kv_cache.h"
#include "refrain/refrain.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

std::vector<std::byte> bytes_of(const TensorSource& source) {
  std::vector<std::byte> bytes;
  for (const TensorSegment& segment : source.segments)
    bytes.insert(bytes.end(), segment.bytes.begin(), segment.bytes.end());
  return bytes;
}

TEST(RandomWeights, RowsHaveANormOfAboutOne) {
  const model::RandomWeights weights;
  constexpr int64_t kRows = 48, kColumns = 1024;
  const TensorSource source = weights.weight("layer", kRows, kColumns);
  EXPECT_EQ(source.shape, (Shape{kRows, kColumns}));
  EXPECT_EQ(source.format->name, "mlx_affine4_g64_bf16");
  for (size_t part = 0; part < 3; ++part) {
    const TensorSegment expected = format::part_of(*source.format, source.shape, part);
    EXPECT_EQ(source.segments[part].dtype, expected.dtype);
    EXPECT_EQ(source.segments[part].shape, expected.shape);
  }
  const std::vector<float> values = format::decode(source);  // which checks that the parts are whole
  std::map<float, size_t> counts;
  double sum = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < kColumns; ++c) {
      const auto value = static_cast<double>(values[static_cast<size_t>(r * kColumns + c)]);
      squares += value * value;
      sum += value;
    }
    EXPECT_NEAR(std::sqrt(squares), 1, 0.1) << r;
  }
  EXPECT_NEAR(sum / (kRows * kColumns) * std::sqrt(kColumns), 0,
              0.03);  // in standard deviations of an element
  for (const float value : values) ++counts[value];
  EXPECT_GT(counts.size(), 16 * 100u) << "scales differ";
}

TEST(RandomWeights, AreThoseOfTheirName) {
  const model::RandomWeights weights, others;
  const std::vector<std::byte> first = bytes_of(weights.weight("first", 2, 64));
  EXPECT_NE(bytes_of(weights.weight("second", 2, 64)), first);
  EXPECT_EQ(bytes_of(weights.weight("first", 2, 64)), first);
  EXPECT_EQ(bytes_of(others.weight("first", 2, 64)), first);
  EXPECT_EQ(format::decode(weights.tensor("norm", {100})), std::vector<float>(100, 1.0f));
  EXPECT_EQ(refusal([&] { (void)weights.weight("first", 2, 96); }),
            "[random weights] first: expected columns in groups of 64, got 96");
}

TEST(KvCache, OfNothingOrOfTooMuch) {
  Device device = Device::open("cpu");
  model::Config config;
  config.state.assign(1, model::KvState{1, 64});
  EXPECT_EQ(refusal([&] { model::KvCache(device, config, 0, 5); }),
            "[kv_cache] expected slots and positions, got 0 of 5");
  EXPECT_EQ(refusal([&] { model::KvCache(device, config, 5, 0); }),
            "[kv_cache] expected slots and positions, got 5 of 0");
  EXPECT_EQ(refusal([&] { model::KvCache(device, config, 1u << 31, 65); }),
            "[kv_cache] 2147483648 slots of 65 positions are too many");
  EXPECT_EQ(model::KvCache(device, config, 3, 65).pages(), 6u);
}

}  // namespace
}  // namespace refrain::test
