// The layout of what a step is made of, which hosts and kernels of every backend share: offsets, sizes, alignment.
#include "refrain/ops/step_block.h"

#include <gtest/gtest.h>

#include <cstring>
#include <type_traits>
#include <vector>

namespace refrain::ops {
namespace {

TEST(StepBlock, FieldsLieWhereTheDesignSays) {
  EXPECT_EQ(offsetof(StepHeader, rows), 0u);
  EXPECT_EQ(offsetof(StepHeader, segments), 4u);
  EXPECT_EQ(offsetof(StepHeader, outputs), 8u);
  EXPECT_EQ(offsetof(StepHeader, reserved), 12u);

  EXPECT_EQ(offsetof(StepRequest, slot), 0u);
  EXPECT_EQ(offsetof(StepRequest, rows), 4u);
  EXPECT_EQ(offsetof(StepRequest, position), 8u);
  EXPECT_EQ(offsetof(StepRequest, state_from), 12u);

  EXPECT_EQ(offsetof(StepRow, token), 0u);
  EXPECT_EQ(offsetof(StepRow, position), 4u);
  EXPECT_EQ(offsetof(StepRow, slot), 8u);
  EXPECT_EQ(offsetof(StepRow, sampled), 12u);

  EXPECT_EQ(offsetof(StepSegment, slot), 0u);
  EXPECT_EQ(offsetof(StepSegment, first_row), 4u);
  EXPECT_EQ(offsetof(StepSegment, rows), 8u);
  EXPECT_EQ(offsetof(StepSegment, state_from), 12u);

  EXPECT_EQ(offsetof(Slot, length), 0u);
  EXPECT_EQ(offsetof(Slot, limit), 4u);
  EXPECT_EQ(offsetof(Slot, last_token), 8u);
  EXPECT_EQ(offsetof(Slot, stopped), 12u);
  EXPECT_EQ(offsetof(Slot, top_k), 16u);
  EXPECT_EQ(offsetof(Slot, mask), 20u);
  EXPECT_EQ(offsetof(Slot, stop_set), 24u);
  EXPECT_EQ(offsetof(Slot, state_version), 28u);
  EXPECT_EQ(offsetof(Slot, temperature), 32u);
  EXPECT_EQ(offsetof(Slot, top_p), 36u);
  EXPECT_EQ(offsetof(Slot, reserved), 40u);
  EXPECT_EQ(offsetof(Slot, seed), 56u);

  EXPECT_EQ(offsetof(StepResult, slot), 0u);
  EXPECT_EQ(offsetof(StepResult, token), 4u);
  EXPECT_EQ(offsetof(StepResult, length), 8u);
  EXPECT_EQ(offsetof(StepResult, bits), 12u);

  EXPECT_EQ(sizeof(Slot), 64u);
  EXPECT_TRUE(std::is_trivially_copyable_v<StepRow>);
  EXPECT_TRUE(std::is_trivially_copyable_v<Slot>);
}

TEST(StepBlock, SeedIsLittleEndianLowWordFirst) {
  Slot slot;
  slot.seed = 0x1122334455667788u;
  uint32_t words[16];
  std::memcpy(words, &slot, sizeof words);
  EXPECT_EQ(words[14], 0x55667788u);
  EXPECT_EQ(words[15], 0x11223344u);
}

TEST(StepBlock, ABlockIsPacked) {
  EXPECT_EQ(StepLayout::block_bytes(0, 0, 0), 16u);
  EXPECT_EQ(StepLayout::block_bytes(64, 1, 1), 16u + 16u + 4u * 65u);
  EXPECT_EQ((StepLayout{512, 512, 512}).block_bytes(), 16u + 16u * 512u + 8u * 512u);
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
  const uint32_t bits[] = {kTokenOutOfRange,  kPositionOutOfRange, kPageOutOfRange,  kSlotOutOfRange,
                           kOutputOutOfRange, kNotFinite,          kTableOutOfRange, kStopId,
                           kStopLimit,        kStopError};
  uint32_t all = 0;
  for (const uint32_t bit : bits) {
    EXPECT_EQ(bit & (bit - 1), 0u);
    EXPECT_EQ(all & bit, 0u);
    all |= bit;
  }
}

}  // namespace
}  // namespace refrain::ops
