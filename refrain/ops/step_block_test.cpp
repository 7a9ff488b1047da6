// The layout of the step block, which hosts and kernels of every backend share: offsets, sizes, alignment.
#include "refrain/ops/step_block.h"

#include <gtest/gtest.h>

#include <cstring>
#include <type_traits>
#include <vector>

namespace refrain::ops {
namespace {

TEST(StepBlock, FieldsLieWhereTheDesignSays) {
  EXPECT_EQ(offsetof(StepHeader, rows), 0u);
  EXPECT_EQ(offsetof(StepHeader, sequences), 4u);
  EXPECT_EQ(offsetof(StepHeader, outputs), 8u);
  EXPECT_EQ(offsetof(StepHeader, reserved), 12u);

  EXPECT_EQ(offsetof(StepRow, token), 0u);
  EXPECT_EQ(offsetof(StepRow, position), 4u);
  EXPECT_EQ(offsetof(StepRow, sequence), 8u);
  EXPECT_EQ(offsetof(StepRow, sampled), 12u);

  EXPECT_EQ(offsetof(StepSequence, length), 0u);
  EXPECT_EQ(offsetof(StepSequence, first_page), 4u);
  EXPECT_EQ(offsetof(StepSequence, top_k), 8u);
  EXPECT_EQ(offsetof(StepSequence, temperature), 16u);
  EXPECT_EQ(offsetof(StepSequence, top_p), 20u);
  EXPECT_EQ(offsetof(StepSequence, seed), 24u);

  EXPECT_EQ(sizeof(StepHeader), 16u);
  EXPECT_EQ(sizeof(StepRow), 16u);
  EXPECT_EQ(sizeof(StepSequence), 32u);
  EXPECT_TRUE(std::is_trivially_copyable_v<StepHeader>);
  EXPECT_TRUE(std::is_trivially_copyable_v<StepRow>);
  EXPECT_TRUE(std::is_trivially_copyable_v<StepSequence>);
}

TEST(StepBlock, SeedIsLittleEndianLowWordFirst) {
  StepSequence sequence;
  sequence.seed = 0x1122334455667788u;
  uint32_t words[8];
  std::memcpy(words, &sequence, sizeof words);
  EXPECT_EQ(words[6], 0x55667788u);
  EXPECT_EQ(words[7], 0x11223344u);
}

TEST(StepBlock, PartsFollowEachOtherAligned) {
  for (const uint32_t rows : {1u, 2u, 3u, 4u, 5u, 63u, 64u, 512u}) {
    for (const uint32_t sequences : {1u, 2u, 7u, 64u}) {
      for (const uint32_t pages : {0u, 1u, 100u}) {
        const StepLayout layout{rows, sequences, pages};
        EXPECT_EQ(layout.rows_offset_bytes(), 16u);
        EXPECT_EQ(layout.sequences_offset_bytes(), 16u + 16u * rows);
        EXPECT_EQ(layout.outputs_offset_bytes(), 16u + 16u * rows + 32u * sequences);
        const size_t outputs_bytes = (4u * rows + 15u) / 16u * 16u;
        EXPECT_EQ(layout.page_table_offset_bytes(), layout.outputs_offset_bytes() + outputs_bytes);
        EXPECT_EQ(layout.bytes(), layout.page_table_offset_bytes() + 4u * pages);
        EXPECT_EQ(layout.rows_offset_bytes() % alignof(StepRow), 0u);
        EXPECT_EQ(layout.sequences_offset_bytes() % alignof(StepSequence), 0u);
        EXPECT_EQ(layout.page_table_offset_bytes() % 16, 0u);
      }
    }
  }
}

TEST(StepBlock, CacheUnitsCoverTheLayerOnceAndInOrder) {
  const CacheGeometry geometry{5, 3, 24};
  size_t expected = 0;
  for (uint32_t kind = 0; kind < 2; ++kind) {
    for (uint32_t page = 0; page < geometry.pages; ++page) {
      for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
        EXPECT_EQ(geometry.unit_offset(kind, page, head), expected);
        expected += size_t{kPagePositions} * geometry.head_dim;
      }
    }
  }
  EXPECT_EQ(geometry.elements(), expected);
}

TEST(StepBlock, CacheOffsetsPassFourBillionElements) {
  const CacheGeometry geometry{65536, 8, 128};
  EXPECT_EQ(geometry.unit_offset(1, 0, 0), uint64_t{65536} * 8 * 64 * 128);
  EXPECT_GT(geometry.unit_offset(1, 65535, 7), uint64_t{0xFFFFFFFF});
}

TEST(StepBlock, StatusBitsAreDistinct) {
  const uint32_t bits[] = {kTokenOutOfRange, kPositionOutOfRange, kPageOutOfRange, kSequenceOutOfRange,
                           kOutputOutOfRange};
  uint32_t all = 0;
  for (const uint32_t bit : bits) {
    EXPECT_EQ(bit & (bit - 1), 0u);
    EXPECT_EQ(all & bit, 0u);
    all |= bit;
  }
}

}  // namespace
}  // namespace refrain::ops
