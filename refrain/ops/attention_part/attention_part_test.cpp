// The parts of attention: every kernel against the reference, the same bits in however many parts, hostile values, and the
// rewrite.
#include "refrain/ops/attention_part/attention_part.h"

#include "refrain/ops/attention/test_attention.h"

namespace refrain::ops {
namespace {

using namespace harness;
using attention_test::Data, attention_test::Heads, attention_test::Positions, attention_test::tolerance;
using attention_test::kernel_like;
using attention_test::kSlotLengths, attention_test::kWindows, attention_test::chunk_positions;

/// What is left of `data` when its output is parts.
struct Parts {
  explicit Parts(const Data& of)
      : data(of),
        chunks(of.constants().chunks()),
        sums(of.query.size() / of.h.head_dim * chunks * 2, -7.0f),
        weighted(of.query.size() * chunks, -7.0f) {}

  Call call(uint32_t parts) const {
    const int64_t rows = data.capacity(), count = chunks, heads = data.h.heads, dim = data.h.head_dim;
    const TestStep& step = data.step;
    Call result(attention_part_schema);
    result.tensor({rows, heads, dim}, data.query).tensor(DType::u32, step.rows_shape(), step.rows.data());
    data.add_cache(result.tensor(step.table_shape(), step.page_table));
    result.tensor(step.status_shape(), step.status);
    result.tensor({rows, count, heads, 2}, sums).tensor({rows, count, heads, dim}, weighted);
    result.constants(AttentionPartConstants{data.constants(), parts});
    return result;
  }

  Data data;
  size_t chunks;
  Array<float> sums, weighted;
};

TEST(AttentionPart, EveryKernelIsCloseToTheReference) {
  for (const uint32_t window : kWindows) {
    for (const uint32_t capacity : {13u, 40u}) {
      Random random(21);
      const Heads heads{6, 2, 12};
      const DType type = capacity == 13 ? DType::f16 : DType::f32;
      const float cap = window == 300 ? 2 : 0;
      const Parts base(
          Data(TestStep(kSlotLengths, chunk_positions(), capacity, random), heads, 3, window, type, cap));
      base.data.poison_unused();
      const Parts expected = base;
      expected.call(1).reference(13);
      for (const backend::Kernel* kernel : base.call(1).kernels()) {
        const Parts found = base;
        found.call(1).run(*kernel, 13);
        for (size_t head = 0; head < found.sums.size() / 2; ++head) {
          const float max = found.sums[2 * head], sum = found.sums[2 * head + 1];
          if (expected.sums[2 * head + 1] == -7.0f) {
            EXPECT_EQ(sum, -7.0f) << "a chunk that the row has not";
            continue;
          }
          const size_t row = head / heads.heads / found.chunks;
          const double bound = tolerance(base.data, row, head % heads.heads);
          // The bound is of quotients times the largest value, which is at most 3.
          EXPECT_NEAR(max, expected.sums[2 * head], 1e-4) << kernel->name;
          EXPECT_NEAR(max + std::log(sum), expected.sums[2 * head] + std::log(expected.sums[2 * head + 1]),
                      1e-4);
          for (size_t d = head * heads.head_dim; d < (head + 1) * heads.head_dim; ++d) {
            EXPECT_NEAR(found.weighted[d] / sum, expected.weighted[d] / expected.sums[2 * head + 1], bound)
                << kernel->name << " window " << window;
          }
        }
        for (const uint32_t word : found.data.step.status) EXPECT_EQ(word, 0u);
      }
    }
  }
}

TEST(AttentionPart, BitsDoNotDependOnPartsWalksOrLiveRows) {
  for (const auto& [window, type] : {std::pair{0u, DType::f32}, {300u, DType::f32}, {300u, DType::f16}}) {
    Random random(22);
    const Parts base(
        Data(TestStep(kSlotLengths, chunk_positions(), 14, random), {6, 2, 40}, 1, window, type));
    ASSERT_EQ(base.chunks, window == 0 ? 5u : 3u);
    for (const backend::Kernel* kernel : base.call(1).kernels()) {
      const Parts whole = base;
      whole.call(1).run(*kernel, 14);
      for (uint32_t parts = 1; parts <= base.chunks; ++parts) {
        for (const Walk& walk : kWalks) {
          const Parts found = base;
          found.call(parts).run(*kernel, 14, walk);
          EXPECT_TRUE(same_bits(found.sums, whole.sums)) << kernel->name << ' ' << parts;
          EXPECT_TRUE(same_bits(found.weighted, whole.weighted)) << kernel->name << ' ' << parts;
        }
        for (const uint32_t live : {0u, 1u, 9u, 100u}) {
          const Parts found = base;
          found.call(parts).run(*kernel, live);
          const size_t row = found.weighted.size() / 14;
          for (size_t i = 0; i < found.weighted.size(); ++i)
            ASSERT_EQ(found.weighted[i], i / row < live ? whole.weighted[i] : -7.0f) << kernel->name;
        }
      }
    }
  }
}

TEST(AttentionPart, ACacheInF16HasTheBitsOfItsValuesInF32) {
  for (const uint32_t window : {0u, 300u}) {
    Random random(22);
    const Parts halves(
        Data(TestStep(kSlotLengths, chunk_positions(), 14, random), {6, 2, 44}, 3, window, DType::f16));
    halves.data.poison_unused();
    Parts floats = halves;
    floats.data.type = DType::f32;
    const auto list = halves.call(2).kernels();
    EXPECT_FALSE(list.empty());
    for (const backend::Kernel* kernel : list) {
      halves.call(2).run(*kernel, 13);
      floats.call(2).run(kernel_like(*kernel, floats.call(2)), 13);
      EXPECT_TRUE(same_bits(halves.sums, floats.sums)) << kernel->name;
      EXPECT_TRUE(same_bits(halves.weighted, floats.weighted)) << kernel->name;
    }
  }
}

TEST(AttentionPart, HostileValuesHaveNoSumAndRaiseStatus) {
  for (const HostileRow& hostile : hostile_rows()) {
    for (const uint32_t parts : {1u, 2u}) {
      for (const backend::Kernel* kernel : kernels_of(attention_part_schema)) {
        Random random(4);
        Parts base(Data(TestStep({130, 64, 400}, {{0, 129}, {2, 399}}, 2, random), {4, 2, 16}));
        if (!base.call(1).accepted_by(*kernel)) base.data.type = DType::f16;
        if (hostile.bits == kPositionOutOfRange && hostile.row.position == 192)
          continue;  // of a shorter table
        base.data.step.rows[0] = hostile.row;
        if (hostile.row.slot == 2) base.data.step.rows[0].slot = 3;
        const Parts found = base;
        found.call(parts).run(*kernel, 2);
        for (size_t h = 0; h < 4; ++h) EXPECT_EQ(found.sums[2 * h + 1], 0.0f) << kernel->name;
        for (size_t h = 0; h < 8; ++h)
          EXPECT_GE(found.sums[2 * (found.chunks * 4 + h) + 1], 1.0f) << "the other row";
        for (size_t i = 0; i < found.data.step.status.size(); ++i) {
          EXPECT_EQ(found.data.step.status[i], i == std::min<size_t>(hostile.word, 3) ? hostile.bits : 0u)
              << kernel->name;
        }
      }
    }
  }
}

TEST(AttentionPart, CheckNamesWhatIsWrong) {
  Random random(4);
  const Parts data(Data(TestStep({400, 64}, {{0, 399}, {1, 0}}, 2, random), {4, 2, 16}));
  EXPECT_EQ(data.call(1).check_error(), "");
  EXPECT_EQ(data.call(2).check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u, 5u, 6u}) {
    Call shape = data.call(1);
    shape.info(index).shape = {9, 9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call(1);
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  for (const uint32_t parts : {0u, 3u}) {
    EXPECT_EQ(data.call(parts).check_error(),
              "[attention_part] parts: expected 1 to the 2 chunks of a row, got " + std::to_string(parts));
  }
}

TEST(AttentionPart, AWindowBoundsTheChunksOfARow) {
  AttentionConstants c;
  c.pages_per_slot = 33;
  EXPECT_EQ(c.chunks(), 9u);
  for (uint32_t window = 1; window < 1000; ++window) {
    c.window = window;
    uint32_t most = 0;
    for (uint32_t position = 0; position < 2112; ++position) {
      const uint32_t chunks = position / 256 - c.first_position(position) / 256 + 1;
      most = std::max(most, chunks);
    }
    ASSERT_EQ(c.chunks(), most) << window;
  }
  c.window = 0xFFFFFFFF;
  EXPECT_EQ(c.chunks(), 9u);
}

/// In how many parts split_attention computes a call of `rows` rows; 1: it stays whole.
uint32_t parts_of(uint32_t rows, uint32_t kv_heads, uint32_t pages, uint32_t window, uint32_t workers,
                  uint32_t splits, bool composes = true) {
  const Heads heads{2 * kv_heads, kv_heads, 8};
  AttentionConstants constants{rows, heads.heads, heads.kv_heads, heads.head_dim, 1, pages, pages, 1, window};
  Call call(attention_schema);
  call.constants(constants);
  backend::DeviceInfo info = machine(workers);
  info.composes = composes;
  backend::Replacement made;
  if (!split_attention.rewrite(call.op_call(), {info, splits}, made)) return 1;
  EXPECT_EQ(made.commands.size(), 2u);
  EXPECT_EQ(made.commands[0].op, &attention_part_schema);
  AttentionPartConstants part;
  std::memcpy(&part, made.commands[0].constants.data(), sizeof(part));
  return part.parts;
}

TEST(AttentionPart, IsWhereWorkersWouldWait) {
  // rows, key-value heads, pages of a slot, window, workers, splits
  EXPECT_EQ(parts_of(1, 1, 128, 0, 2, 0), 4u);
  EXPECT_EQ(parts_of(1, 3, 128, 0, 2, 0), 2u);
  EXPECT_EQ(parts_of(3, 1, 128, 0, 2, 0), 2u);
  EXPECT_EQ(parts_of(1, 8, 128, 0, 16, 0), 4u);
  EXPECT_EQ(parts_of(1, 1, 128, 0, 64, 0), 32u) << "one a chunk at most";
  EXPECT_EQ(parts_of(1, 1, 128, 0, 1, 0), 1u) << "one worker";
  EXPECT_EQ(parts_of(1, 2, 128, 0, 2, 0), 1u) << "as many heads as workers";
  EXPECT_EQ(parts_of(5, 1, 128, 0, 2, 0), 1u) << "more rows than they need";
  EXPECT_EQ(parts_of(1, 1, 15, 0, 2, 0), 1u) << "a short context";
  EXPECT_EQ(parts_of(1, 1, 128, 512, 2, 0), 1u) << "a short window";
  EXPECT_EQ(parts_of(1, 1, 128, 0, 2, 0, false), 1u) << "a backend with kernels for sets";
  // As told.
  EXPECT_EQ(parts_of(1, 8, 128, 0, 2, 3), 3u);
  EXPECT_EQ(parts_of(1, 8, 128, 0, 2, 3, false), 3u);
  EXPECT_EQ(parts_of(31, 8, 5, 0, 2, 100), 2u) << "one a chunk at most";
  EXPECT_EQ(parts_of(1, 1, 4, 0, 2, 100), 1u) << "one chunk";
  EXPECT_EQ(parts_of(1, 1, 128, 0, 2, 1), 1u);
  EXPECT_EQ(parts_of(32, 1, 128, 0, 2, 4), 1u) << "blocks of rows";
}

}  // namespace
}  // namespace refrain::ops
