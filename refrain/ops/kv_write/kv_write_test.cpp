// Cache write: every kernel against the reference, ragged batches, what f16 keeps, hostile values.
#include "refrain/ops/kv_write/kv_write.h"

#include <tuple>

#include "refrain/ops/test_step.h"

namespace refrain::ops {
namespace {

using namespace harness;

constexpr DType kTypes[] = {DType::f32, DType::f16};

struct Data {
  Data(TestStep test_step, uint32_t kv_heads, uint32_t head_dim, DType cache_type, uint64_t seed = 5)
      : step(std::move(test_step)),
        heads(kv_heads),
        dim(head_dim),
        type(cache_type),
        key(step.rows.size() * kv_heads * head_dim),
        value(key.size()),
        cache(step.cache_elements(kv_heads, head_dim), -7.0f),
        cache_f16(cache.size(), f16::from_float(-7.0f)) {
    Random random(seed);
    random.fill(key);
    random.fill(value);
  }
  Call call() const {
    const Shape shape{static_cast<int64_t>(step.rows.size()), heads, dim};
    Call result(kv_write_schema);
    result.tensor(shape, key).tensor(shape, value).tensor(DType::u32, step.rows_shape(), step.rows.data());
    result.tensor(step.table_shape(), step.page_table);
    type == DType::f16 ? result.tensor(step.cache_shape(heads, dim), cache_f16)
                       : result.tensor(step.cache_shape(heads, dim), cache);
    result.tensor(step.status_shape(), step.status);
    return result;
  }
  const backend::Kernel& kernel() const {
    const std::vector<const backend::Kernel*> list = call().kernels();
    EXPECT_EQ(list.size(), 1u);
    return *list.front();
  }

  TestStep step;
  uint32_t heads, dim;
  DType type;
  Array<float> key, value, cache;
  Array<f16> cache_f16;  // written in its place where that is the type
};

std::vector<TestStep::Position> mixed_positions() {
  std::vector<TestStep::Position> positions;
  for (const uint32_t p : {62u, 63u, 64u, 65u, 127u, 128u, 129u}) positions.emplace_back(0, p);
  for (const uint32_t p : {0u, 1u, 2u}) positions.emplace_back(1, p);
  positions.emplace_back(2, 63);
  return positions;
}

TEST(KvWrite, WritesWhatTheReferenceWrites) {
  for (const auto& [heads, dim, type] : {std::tuple{1u, 1u, DType::f32},
                                         {2u, 16u, DType::f32},
                                         {3u, 7u, DType::f32},
                                         {8u, 128u, DType::f32},
                                         {1u, 1u, DType::f16},
                                         {2u, 16u, DType::f16},
                                         {3u, 7u, DType::f16},
                                         {8u, 128u, DType::f16}}) {
    Random random(3);
    const Data expected(TestStep({130, 3, 64}, mixed_positions(), 13, random), heads, dim, type);
    for (const uint32_t live : {0u, 1u, 5u, 11u}) {
      Data reference = expected;
      reference.call().reference(live);
      for (const Walk& walk : kWalks) {
        Data data = expected;
        data.call().run(data.kernel(), live, walk);
        EXPECT_TRUE(same_bits(data.cache, reference.cache)) << live;
        EXPECT_TRUE(same_bits(data.cache_f16, reference.cache_f16)) << live;
        for (const uint32_t word : data.step.status) EXPECT_EQ(word, 0u);
      }
    }
  }
}

TEST(KvWrite, HostileValuesWriteNothingAndRaiseStatus) {
  const auto run = [](const auto& spoil, uint32_t word, uint32_t bits) {
    for (const DType type : kTypes) {
      Random random(4);
      Data data(TestStep({130, 64}, {{0, 129}, {1, 0}}, 2, random), 2, 8, type);
      spoil(data.step);
      Data reference = data;
      data.call().run(data.kernel(), 1);
      for (const float element : data.cache) EXPECT_EQ(element, -7.0f);
      for (const f16 element : data.cache_f16) EXPECT_EQ(element.to_float(), -7.0f);
      for (size_t i = 0; i < data.step.status.size(); ++i) {
        EXPECT_EQ(data.step.status[i], i == std::min<size_t>(word, 2) ? bits : 0u);
      }
      data.call().run(data.kernel(), 2);
      reference.call().reference(2);
      EXPECT_TRUE(same_bits(data.cache, reference.cache));
      EXPECT_TRUE(same_bits(data.cache_f16, reference.cache_f16));
      EXPECT_TRUE(same_bits(data.step.status, reference.step.status));
    }
  };
  for (const HostileRow& hostile : hostile_rows()) {
    run([&](TestStep& step) { step.rows[0] = hostile.row; }, hostile.word, hostile.bits);
  }
  for (const uint32_t page : {0xFFFFFFFFu, 7u}) {
    run([&](TestStep& step) { step.page(0, 129) = page; }, 0, kPageOutOfRange);
  }
}

/// Values and what of them a cache in f16 keeps.
struct Rounding {
  float from;
  uint16_t kept;
};
constexpr Rounding kRoundings[] = {
    {0.0f, 0x0000},
    {1.0f, 0x3C00},
    {0x1.002p0f, 0x3C00},     // halfway between two: to even
    {0x1.002002p0f, 0x3C01},  // beyond
    {0x1.006p0f, 0x3C02},     // halfway: to even
    {0x1.ffdffep0f, 0x3FFF},
    {0x1.ffep0f, 0x4000},       // to the next power of two
    {0x1p-14f, 0x0400},         // the least normal one
    {0x1.ff8p-15f, 0x03FF},     // the greatest subnormal one
    {0x1.ffcp-15f, 0x0400},     // halfway: to even
    {0x1.ffbffep-15f, 0x03FF},  // just below
    {0x1p-24f, 0x0001},         // the least one
    {0x1p-25f, 0x0000},         // halfway: to even
    {0x1.000002p-25f, 0x0001},
    {0x1.8p-24f, 0x0002},  // halfway: to even
    {0x1.4p-23f, 0x0002},  // halfway: to even
    {0x1p-149f, 0x0000},
    {65504.0f, 0x7BFF},
    {65519.99609375f, 0x7BFF},
    {65520.0f, 0x7BFF},  // from here on IEEE 754 has infinity
    {65536.0f, 0x7BFF},
    {std::numeric_limits<float>::max(), 0x7BFF},
    {std::numeric_limits<float>::infinity(), 0x7BFF},
};

TEST(KvWrite, KeepsInF16TheNearestFiniteValue) {
  const auto count = static_cast<uint32_t>(std::size(kRoundings));
  Random random(4);
  const Data data(TestStep({1}, {{0, 0}}, 1, random), 2, count + 3, DType::f16);
  for (uint32_t i = 0; i < 2 * (count + 3); ++i) {
    const uint32_t column = i % (count + 3);
    const uint32_t nans[] = {0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu};
    data.key[i] = column < count ? kRoundings[column].from : std::bit_cast<float>(nans[column - count]);
    data.value[i] = -data.key[i];
  }
  data.call().run(data.kernel(), 1);
  const CacheGeometry geometry{data.step.cache_pages, data.heads, data.dim};
  for (uint32_t h = 0; h < 2; ++h) {
    const f16* keys = &data.cache_f16[geometry.unit_offset(0, data.step.page(0, 0), h)];
    const f16* values = &data.cache_f16[geometry.unit_offset(1, data.step.page(0, 0), h)];
    for (uint32_t i = 0; i < count; ++i) {
      EXPECT_EQ(keys[i].bits, kRoundings[i].kept) << kRoundings[i].from;
      EXPECT_EQ(values[i].bits, kRoundings[i].kept | 0x8000) << -kRoundings[i].from;
    }
    for (uint32_t i = count; i < count + 3; ++i) {
      EXPECT_TRUE(std::isnan(keys[i].to_float())) << i;
      EXPECT_TRUE(std::isnan(values[i].to_float())) << i;
    }
  }
}

TEST(KvWrite, EveryValueOfF16IsKept) {
  std::vector<TestStep::Position> positions;
  for (uint32_t p = 0; p < 64; ++p) positions.emplace_back(0, p);
  Random random(4);
  const Data data(TestStep({64}, positions, 64, random), 8, 128, DType::f16);
  ASSERT_EQ(data.key.size(), 65536u);
  for (uint32_t bits = 0; bits < 65536; ++bits)
    data.key[bits] = data.value[65535 - bits] = f16{static_cast<uint16_t>(bits)}.to_float();
  data.call().run(data.kernel(), 64);
  const CacheGeometry geometry{data.step.cache_pages, 8, 128};
  for (uint32_t i = 0; i < 65536; ++i) {
    for (const uint32_t kind : {0u, 1u}) {
      const uint32_t row = i / 1024, h = i / 128 % 8, bits = kind == 0 ? i : 65535 - i;
      const uint16_t kept =
          data.cache_f16[geometry.unit_offset(kind, data.step.page(0, 0), h) + row * 128 + i % 128].bits;
      const uint32_t magnitude = bits & 0x7FFFu;
      if (magnitude > 0x7C00) {
        ASSERT_GT(kept & 0x7FFFu, 0x7C00u) << bits;
      } else {
        ASSERT_EQ(kept, magnitude == 0x7C00 ? bits - 1 : bits);
      }
    }
  }
}

TEST(KvWrite, KeepsInF32WhatThereIs) {
  Random random(4);
  const Data data(TestStep({1}, {{0, 0}}, 1, random), 1, 4, DType::f32);
  const uint32_t bits[] = {0x7F800000u, 0x7F800001u, 0x00000001u, 0x80000000u};
  std::memcpy(data.key.data(), bits, sizeof(bits));
  data.call().run(data.kernel(), 1);
  const CacheGeometry geometry{data.step.cache_pages, 1, 4};
  EXPECT_EQ(std::memcmp(&data.cache[geometry.unit_offset(0, data.step.page(0, 0), 0)], bits, sizeof(bits)),
            0);
}

TEST(KvWrite, TheClassOfF16SaysThatItRounds) {
  Random random(4);
  const Data f32(TestStep({1}, {{0, 0}}, 1, random), 1, 4, DType::f32);
  const Data f16(TestStep({1}, {{0, 0}}, 1, random), 1, 4, DType::f16);
  EXPECT_EQ(f32.kernel().numerics, "exact, copy");
  EXPECT_EQ(f16.kernel().numerics, "rounded to f16, to nearest even, finite");
}

TEST(KvWrite, WhatIsWrittenCostsByItsType) {
  Random random(4);
  const TestStep step({1}, {{0, 0}}, 1, random);
  EXPECT_EQ(kv_write_schema.cost(Data(step, 2, 8, DType::f32).call().op_call()).bytes, 2u * 16 * (4 + 4));
  EXPECT_EQ(kv_write_schema.cost(Data(step, 2, 8, DType::f16).call().op_call()).bytes, 2u * 16 * (4 + 2));
}

TEST(KvWrite, CheckNamesWhatIsWrong) {
  Random random(4);
  const Data data(TestStep({130, 64}, {{0, 129}, {1, 0}}, 2, random), 2, 8, DType::f32);
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u, 5u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
    Call bound = data.call();
    bound.info(index).bound = false;
    EXPECT_NE(bound.check_error(), "") << index;
  }
  Call type = data.call();
  type.info(4).dtype = DType::bf16;
  EXPECT_EQ(type.check_error(), "[kv_write] cache: expected f32 or f16, got bf16");
  Call cache = data.call();
  cache.info(4).shape = {2, 7, 2, 32, 8};
  EXPECT_EQ(cache.check_error(), "[kv_write] cache: expected [2, 7, 2, 64, 8], got [2, 7, 2, 32, 8]");
}

}  // namespace
}  // namespace refrain::ops
