// Cache write: the kernel against the reference, ragged batches, hostile values.
#include "refrain/ops/kv_write/kv_write.h"

#include "refrain/ops/test_step.h"

namespace refrain::ops {
namespace {

using namespace harness;

const backend::Kernel& kernel() { return kernel_of(kv_write_schema); }

struct Data {
  Data(TestStep test_step, uint32_t kv_heads, uint32_t head_dim, uint64_t seed = 5)
      : step(std::move(test_step)),
        heads(kv_heads),
        dim(head_dim),
        key(step.rows.size() * kv_heads * head_dim),
        value(key.size()),
        cache(step.cache_elements(kv_heads, head_dim), -7.0f) {
    Random random(seed);
    random.fill(key);
    random.fill(value);
  }
  Call call() const {
    const Shape shape{static_cast<int64_t>(step.rows.size()), heads, dim};
    Call result(kv_write_schema);
    result.tensor(shape, key).tensor(shape, value).tensor(DType::u32, step.rows_shape(), step.rows.data());
    result.tensor(step.table_shape(), step.page_table).tensor(step.cache_shape(heads, dim), cache);
    result.tensor(step.status_shape(), step.status);
    return result;
  }

  TestStep step;
  uint32_t heads, dim;
  Array<float> key, value, cache;
};

std::vector<TestStep::Position> mixed_positions() {
  std::vector<TestStep::Position> positions;
  for (const uint32_t p : {62u, 63u, 64u, 65u, 127u, 128u, 129u}) positions.emplace_back(0, p);
  for (const uint32_t p : {0u, 1u, 2u}) positions.emplace_back(1, p);
  positions.emplace_back(2, 63);
  return positions;
}

TEST(KvWrite, WritesWhatTheReferenceWrites) {
  for (const auto& [heads, dim] : {std::pair{1u, 1u}, {2u, 16u}, {3u, 7u}, {8u, 128u}}) {
    Random random(3);
    const Data expected(TestStep({130, 3, 64}, mixed_positions(), 13, random), heads, dim);
    for (const uint32_t live : {0u, 1u, 5u, 11u}) {
      Data reference = expected;
      reference.call().reference(live);
      for (const Walk& walk : kWalks) {
        Data data = expected;
        data.call().run(kernel(), live, walk);
        EXPECT_TRUE(same_bits(data.cache, reference.cache)) << live;
        for (const uint32_t word : data.step.status) EXPECT_EQ(word, 0u);
      }
    }
  }
}

TEST(KvWrite, HostileValuesWriteNothingAndRaiseStatus) {
  const auto run = [](const auto& spoil, uint32_t word, uint32_t bits) {
    Random random(4);
    Data data(TestStep({130, 64}, {{0, 129}, {1, 0}}, 2, random), 2, 8);
    spoil(data.step);
    Data reference = data;
    data.call().run(kernel(), 1);
    for (const float element : data.cache) EXPECT_EQ(element, -7.0f);
    for (size_t i = 0; i < data.step.status.size(); ++i) {
      EXPECT_EQ(data.step.status[i], i == std::min<size_t>(word, 2) ? bits : 0u);
    }
    data.call().run(kernel(), 2);
    reference.call().reference(2);
    EXPECT_TRUE(same_bits(data.cache, reference.cache));
    EXPECT_TRUE(same_bits(data.step.status, reference.step.status));
  };
  for (const HostileRow& hostile : hostile_rows()) {
    run([&](TestStep& step) { step.rows[0] = hostile.row; }, hostile.word, hostile.bits);
  }
  for (const uint32_t page : {0xFFFFFFFFu, 7u}) {
    run([&](TestStep& step) { step.page(0, 129) = page; }, 0, kPageOutOfRange);
  }
}

TEST(KvWrite, CheckNamesWhatIsWrong) {
  Random random(4);
  const Data data(TestStep({130, 64}, {{0, 129}, {1, 0}}, 2, random), 2, 8);
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
  Call cache = data.call();
  cache.info(4).shape = {2, 7, 2, 32, 8};
  EXPECT_EQ(cache.check_error(), "[kv_write] cache: expected [2, 7, 2, 64, 8], got [2, 7, 2, 32, 8]");
}

}  // namespace
}  // namespace refrain::ops
