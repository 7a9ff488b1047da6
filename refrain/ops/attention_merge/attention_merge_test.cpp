// The merge of attention's parts: every kernel against the reference; with attention_part the bits of attention.
#include "refrain/ops/attention_merge/attention_merge.h"

#include "refrain/ops/attention/test_attention.h"
#include "refrain/ops/attention_part/attention_part.h"

namespace refrain::ops {
namespace {

using namespace harness;
using attention_test::Data, attention_test::Heads, attention_test::Positions;
using attention_test::kernel_like;
using attention_test::kSlotLengths, attention_test::kWindows, attention_test::chunk_positions;

std::vector<const backend::Kernel*> kernels() { return kernels_of(attention_merge_schema); }

struct Merge {
  Merge(const Data& of, size_t chunk_count)
      : data(of),
        chunks(chunk_count),
        sums(of.query.size() / of.h.head_dim * chunks * 2, std::numeric_limits<float>::quiet_NaN()),
        weighted(of.query.size() * chunks, std::numeric_limits<float>::quiet_NaN()) {}

  Shape sums_shape() const { return {data.capacity(), static_cast<int64_t>(chunks), data.h.heads, 2}; }
  Shape weighted_shape() const {
    return {data.capacity(), static_cast<int64_t>(chunks), data.h.heads, data.h.head_dim};
  }
  Call call() const {
    Call result(attention_merge_schema);
    result.tensor(sums_shape(), sums).tensor(weighted_shape(), weighted);
    result.tensor(DType::u32, data.step.rows_shape(), data.step.rows.data());
    result.tensor({data.capacity(), data.h.heads, data.h.head_dim}, data.output);
    result.constants(AttentionMergeConstants{data.capacity(), data.h.heads, data.h.head_dim,
                                             static_cast<uint32_t>(chunks), data.window});
    return result;
  }
  Call part_call(uint32_t parts) const {
    const TestStep& step = data.step;
    Call result(attention_part_schema);
    result.tensor({data.capacity(), data.h.heads, data.h.head_dim}, data.query)
        .tensor(DType::u32, step.rows_shape(), step.rows.data());
    data.add_cache(result.tensor(step.table_shape(), step.page_table));
    result.tensor(step.status_shape(), step.status);
    result.tensor(sums_shape(), sums).tensor(weighted_shape(), weighted);
    result.constants(AttentionPartConstants{data.constants(), parts});
    return result;
  }

  Data data;
  size_t chunks;
  Array<float> sums, weighted;
};

/// Random parts: what a row has not stays NaN.
Merge random_parts(uint32_t capacity, const Heads& heads, uint32_t window) {
  Random random(5);
  const Data data(TestStep(kSlotLengths, chunk_positions(), capacity, random), heads, 1, window);
  Merge merge(data, data.constants().chunks());
  for (size_t r = 0; r < 13; ++r) {
    const StepRow& row = data.step.rows[r];
    const size_t count = row.position / 256 - data.begin(row) / 256 + 1;
    for (size_t head = r * merge.chunks * heads.heads; head < (r * merge.chunks + count) * heads.heads;
         ++head) {
      merge.sums[2 * head] = 20 * random.uniform();
      merge.sums[2 * head + 1] = 1 + std::abs(random.uniform()) * 255;
      for (size_t d = 0; d < heads.head_dim; ++d)
        merge.weighted[head * heads.head_dim + d] = random.uniform() * merge.sums[2 * head + 1];
    }
  }
  return merge;
}

TEST(AttentionMerge, EveryKernelIsCloseToTheReference) {
  for (const Heads& heads : {Heads{1, 1, 1}, Heads{6, 2, 12}, Heads{4, 2, 64}, Heads{2, 2, 100}}) {
    for (const uint32_t window : {0u, 300u}) {
      const Merge base = random_parts(13, heads, window);
      const Merge expected = base;
      expected.call().reference(13);
      for (const backend::Kernel* kernel : kernels()) {
        const Merge found = base;
        found.call().run(*kernel, 13);
        const double bound = (12.0 * static_cast<double>(base.chunks) + 8) * kUnitRoundoff;
        EXPECT_LE(excess(found.data.output, expected.data.output, [&](size_t) { return bound; }), 0)
            << kernel->name << ' ' << heads.head_dim;
      }
    }
  }
}

TEST(AttentionMerge, BitsDoNotDependOnWalksOrLiveRows) {
  const Merge base = random_parts(14, {6, 2, 40}, 0);
  for (const backend::Kernel* kernel : kernels()) {
    const Merge whole = base;
    whole.call().run(*kernel, 13);
    for (const Walk& walk : kWalks) {
      const Merge found = base;
      found.call().run(*kernel, 13, walk);
      EXPECT_TRUE(same_bits(found.data.output, whole.data.output)) << kernel->name;
    }
    for (const uint32_t live : {0u, 1u, 9u}) {
      const Merge found = base;
      found.call().run(*kernel, live);
      for (size_t i = 0; i < found.data.output.size(); ++i)
        ASSERT_EQ(found.data.output[i], i / 240 < live ? whole.data.output[i] : -7.0f) << kernel->name;
    }
  }
}

TEST(AttentionMerge, ARowWithoutAFirstChunkIsZero) {
  for (const uint32_t position : {0u, 300u, 0xFFFFFFFFu}) {
    for (const backend::Kernel* kernel : kernels()) {
      Merge merge = random_parts(13, {4, 2, 16}, 0);
      merge.data.step.rows[1].position = position;
      for (size_t h = 0; h < 4; ++h) merge.sums[2 * (merge.chunks * 4 + h) + 1] = 0;
      merge.call().run(*kernel, 2);
      for (size_t i = 0; i < 64; ++i) {
        EXPECT_EQ(merge.data.output[64 + i], 0.0f) << kernel->name;
        EXPECT_NE(merge.data.output[i], 0.0f) << "the other row";
      }
    }
  }
}

// Over edges of blocks and chunks, groups of heads, windows, rows that share tiles, live counts and hostile rows.
TEST(AttentionMerge, HasTheBitsOfAttentionInAnyParts) {
  for (const Heads& heads : {Heads{6, 2, 40}, Heads{5, 1, 16}, Heads{3, 3, 12}}) {
    for (const uint32_t window : kWindows) {
      for (const uint32_t capacity : {1u, 13u, 40u}) {
        Random random(22);
        Positions positions = chunk_positions();
        if (capacity == 1) positions = {{3, 1099}};
        const DType type = heads.kv_heads == 3 ? DType::f16 : DType::f32;
        const float cap = heads.kv_heads == 1 ? 0.5f : 0;
        Data base(TestStep(kSlotLengths, positions, capacity, random), heads, 2, window, type, cap);
        if (capacity == 40) {
          base.step.rows[13] = {0, 0, kIdle, 0};
          base.step.rows[14] = {0, 5, 77, 0};
          base.step.rows[15] = {0, 0xFFFFFFFF, 1, 0};
          base.step.rows[16] = {0, 301 + 64, 1, 0};  // a page that the slot has not
        }
        const uint32_t live = capacity == 40 ? 17 : capacity;
        for (const backend::Kernel* kernel : kernels()) {
          const Data whole = base;
          whole.call().run(kernel_like(*kernel, whole.call()), live);
          const backend::Kernel& part =
              kernel_like(*kernel, Merge(base, base.constants().chunks()).part_call(1));
          for (uint32_t parts = 1; parts <= base.constants().chunks(); ++parts) {
            const Merge merge(base, base.constants().chunks());
            merge.part_call(parts).run(part, live);
            merge.call().run(*kernel, live);
            ASSERT_TRUE(same_bits(merge.data.output, whole.output))
                << kernel->name << ' ' << parts << " parts, window " << window << ", rows " << capacity;
            EXPECT_TRUE(same_bits(merge.data.step.status, whole.step.status));
          }
        }
      }
    }
  }
}

TEST(AttentionMerge, CheckNamesWhatIsWrong) {
  const Merge data = random_parts(13, {4, 2, 16}, 0);
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  Call output = data.call();
  output.info(3).shape = {13, 4, 8};
  EXPECT_EQ(output.check_error(), "[attention_merge] output: expected [13, 4, 16], got [13, 4, 8]");
}

}  // namespace
}  // namespace refrain::ops
