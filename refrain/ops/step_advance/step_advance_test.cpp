// Advance of the slots: the kernel against the reference, each reason to stop, the ring, hostile values.
#include "refrain/ops/step_advance/step_advance.h"

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

const backend::Kernel& kernel() { return kernel_of(step_advance_schema); }

struct Data {
  Data(uint32_t segment_count, uint32_t row_count, uint32_t slot_count, uint32_t entries = 8)
      : segments(segment_count),
        rows(row_count),
        stop_sets(2 * kStopIds, kNoToken),
        slots(slot_count),
        status(slot_count + 1),
        ring(4 + 4 * entries) {}
  Call call() const {
    const auto g = static_cast<uint32_t>(segments.size()), r = static_cast<uint32_t>(rows.size()),
               s = static_cast<uint32_t>(slots.size());
    Call result(step_advance_schema);
    result.tensor(DType::u32, {g, 4}, segments.data()).tensor(DType::u32, {r, 4}, rows.data());
    result.tensor({2, kStopIds}, stop_sets).tensor(DType::u32, {s, 16}, slots.data());
    result.tensor({s + 1}, status).tensor({static_cast<int64_t>(ring.size())}, ring);
    result.constants(StepAdvanceConstants{.context_tokens = context});
    return result;
  }
  StepResult result(size_t index) const {
    return {ring[4 + 4 * index], ring[5 + 4 * index], ring[6 + 4 * index], ring[7 + 4 * index]};
  }
  /// One segment of `count` rows from `first` on, the last of which drew `token` at `position`.
  void segment(size_t g, uint32_t slot, uint32_t first, uint32_t count, uint32_t position, uint32_t token) {
    segments[g] = {slot, first, count, 0};
    rows[first + count - 1] = {1, position, slot, token};
  }

  uint32_t context = 1000;
  Array<StepSegment> segments;
  Array<StepRow> rows;
  Array<uint32_t> stop_sets;
  Array<Slot> slots;
  Array<uint32_t> status, ring;
};

bool operator==(const StepResult& a, const StepResult& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

void expect_same(const Data& a, const Data& b) {
  EXPECT_TRUE(same_bits(a.slots, b.slots));
  EXPECT_TRUE(same_bits(a.status, b.status));
  EXPECT_TRUE(same_bits(a.ring, b.ring));
}

TEST(StepAdvance, TheSlotMovesOnAndTheHostIsTold) {
  Data data(2, 4, 2);
  data.segment(0, 1, 0, 3, 43, 17);
  data.slots[1].length = 41;
  data.slots[1].temperature = 0.5f;
  data.call().run(kernel(), 1);
  EXPECT_EQ(data.slots[1].length, 44u);
  EXPECT_EQ(data.slots[1].last_token, 17u);
  EXPECT_EQ(data.slots[1].stopped, 0u);
  EXPECT_EQ(data.slots[1].temperature, 0.5f);
  EXPECT_EQ(data.slots[0].length, 0u);
  EXPECT_EQ(data.ring[0], 1u);
  EXPECT_EQ(data.ring[1], 1u);
  EXPECT_TRUE(data.result(0) == (StepResult{1, 17, 44, 0}));
}

TEST(StepAdvance, EveryReasonToStop) {
  Data data(6, 6, 6);
  data.stop_sets[kStopIds + 3] = 99;
  for (uint32_t s = 0; s < 6; ++s) {
    data.segment(s, s, s, 1, 50, 99);
    data.slots[s].stop_set = 1;
  }
  data.slots[1].stop_set = kNoTable;  // draws 99, goes on
  data.slots[2].stop_set = 0;         // another set
  data.slots[2].limit = 51;
  data.slots[3].limit = 52;
  data.status[4] = kNotFinite;
  data.slots[5].stop_set = 2;
  data.call().run(kernel(), 1);
  const uint32_t bits[] = {kStopId,
                           0,
                           kStopLimit,
                           kStopId,
                           uint32_t{kStopError} | kNotFinite,
                           uint32_t{kStopError} | kTableOutOfRange};
  for (uint32_t s = 0; s < 6; ++s) {
    const uint32_t token = s < 4 ? 99 : kNoToken;
    EXPECT_TRUE(data.result(s) == (StepResult{s, token, 51, bits[s]})) << s;
    EXPECT_EQ(data.slots[s].stopped, bits[s] & ~0xFFFFu) << s;
    EXPECT_EQ(data.slots[s].last_token, token) << s;
    EXPECT_EQ(data.status[s], 0u) << s;
  }
  data.context = 51;
  data.call().run(kernel(), 1);
  EXPECT_EQ(data.slots[1].stopped, uint32_t{kStopLimit});
}

TEST(StepAdvance, WithoutATokenNothingIsToldAndWithoutRowsNothingMoves) {
  Data data(3, 3, 3);
  data.segment(0, 0, 0, 1, 7, kNoToken);  // a chunk of a prompt
  data.segments[1] = {1, 1, 0, 0};        // has stopped
  data.segments[2] = {2, 1, 0, 0};        // was refused
  data.slots[1].stopped = kStopId;
  data.slots[1].last_token = 5;
  data.status[2] = kPositionOutOfRange;
  data.status[3] = kSlotOutOfRange;
  data.call().run(kernel(), 1);
  EXPECT_EQ(data.slots[0].length, 8u);
  EXPECT_EQ(data.slots[0].last_token, kNoToken);
  EXPECT_EQ(data.slots[1].stopped, uint32_t{kStopId});
  EXPECT_EQ(data.slots[1].last_token, 5u);
  ASSERT_EQ(data.ring[0], 2u);
  EXPECT_TRUE(data.result(0) == (StepResult{2, kNoToken, 0, uint32_t{kStopError} | kPositionOutOfRange}));
  EXPECT_TRUE(data.result(1) == (StepResult{kIdle, kNoToken, 0, kSlotOutOfRange}));
  EXPECT_EQ(data.status[3], 0u);
}

TEST(StepAdvance, TheRingGoesRound) {
  Data data(1, 1, 1, 4);
  data.ring[0] = 0xFFFFFFFE;
  for (uint32_t i = 0; i < 6; ++i) {
    data.segment(0, 0, 0, 1, i, 100 + i);
    data.call().run(kernel(), 1);
  }
  EXPECT_EQ(data.ring[0], 4u);
  EXPECT_EQ(data.ring[1], 6u);
  for (uint32_t i = 2; i < 6; ++i) EXPECT_EQ(data.result((i + 2) % 4).token, 100 + i);
}

TEST(StepAdvance, ChangesWhatTheReferenceChanges) {
  Random random(5);
  for (int round = 0; round < 300; ++round) {
    Data data(9, 12, 5, 4);
    data.context = 5 + random.below(10);
    for (uint32_t& id : data.stop_sets) id = random.below(8) == 0 ? random.below(6) : kNoToken;
    for (StepRow& row : data.rows) {
      row = {random.below(6), random.below(10), random.below(5), random.below(6)};
      if (random.below(4) == 0) row.sampled = kNoToken;
      if (random.below(20) == 0) row.position = 0xFFFFFFFF - random.below(2);
    }
    for (StepSegment& segment : data.segments) {
      segment = {random.below(6), random.below(14), random.below(4), 0};
      if (random.below(9) == 0) segment.first_row = segment.rows = 0xFFFFFFFF;
      if (random.below(9) == 0) segment.slot = kIdle;
    }
    for (Slot& slot : data.slots) {
      slot.length = random.below(9);
      slot.limit = random.below(12);
      slot.stop_set = random.below(3) == 0 ? kNoTable : random.below(3);
    }
    for (uint32_t& word : data.status) word = random.below(3) == 0 ? 1u << random.below(7) : 0;
    Data reference = data;
    reference.call().reference(1);
    data.call().run(kernel(), 1);
    expect_same(data, reference);
  }
}

TEST(StepAdvance, CheckNamesWhatIsWrong) {
  const Data data(4, 4, 2);
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u, 5u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  Call rows = data.call();
  rows.info(1).shape = {4, 5};
  EXPECT_EQ(rows.check_error(), "[step_advance] rows: expected [4, 4], got [4, 5]");
  for (const int64_t words : {0, 4, 7, 12 + 4, 37}) {
    Call ring = data.call();
    ring.info(5).shape = {words};
    EXPECT_NE(ring.check_error(), "") << words;
  }
}

}  // namespace
}  // namespace refrain::ops
