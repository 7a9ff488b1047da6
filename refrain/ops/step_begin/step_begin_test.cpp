// Begin of a step: requests by hand, the kernel against the reference on random and hostile blocks.
#include "refrain/ops/step_begin/step_begin.h"

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

const backend::Kernel& kernel() { return kernel_of(step_begin_schema); }

struct Data {
  Data(uint32_t row_capacity, uint32_t segment_capacity, uint32_t output_capacity, uint32_t slot_count)
      : block(4 + 4 * segment_capacity + row_capacity + output_capacity),
        slots(slot_count),
        live(4, 0xBEEF),
        rows(row_capacity),
        segments(segment_capacity),
        outputs(output_capacity, 0xBEEF),
        status(slot_count + 1) {}
  Call call() const {
    const auto r = static_cast<uint32_t>(rows.size()), g = static_cast<uint32_t>(segments.size()),
               o = static_cast<uint32_t>(outputs.size()), s = static_cast<uint32_t>(slots.size());
    Call result(step_begin_schema);
    result.tensor({static_cast<int64_t>(block.size())}, block).tensor(DType::u32, {s, 16}, slots.data());
    result.tensor({4}, live).tensor(DType::u32, {r, 4}, rows.data());
    result.tensor(DType::u32, {g, 4}, segments.data()).tensor({o}, outputs).tensor({s + 1}, status);
    result.constants(StepBeginConstants{.context_tokens = context});
    return result;
  }
  void send(const std::vector<StepRequest>& requests, const std::vector<uint32_t>& tokens,
            const std::vector<uint32_t>& wanted) {
    std::vector<uint32_t> words = {static_cast<uint32_t>(tokens.size()),
                                   static_cast<uint32_t>(requests.size()),
                                   static_cast<uint32_t>(wanted.size()), 0};
    for (const StepRequest& q : requests)
      words.insert(words.end(), {q.slot, q.rows, q.position, q.state_from});
    words.insert(words.end(), tokens.begin(), tokens.end());
    words.insert(words.end(), wanted.begin(), wanted.end());
    std::copy(words.begin(), words.end(), block.begin());
  }
  void expect_row(size_t r, const StepRow& row) const {
    EXPECT_EQ(std::memcmp(&rows[r], &row, sizeof row), 0) << "row " << r;
  }
  void expect_segment(size_t g, const StepSegment& segment) const {
    EXPECT_EQ(std::memcmp(&segments[g], &segment, sizeof segment), 0) << "segment " << g;
  }
  void expect_live(uint32_t live_rows, uint32_t live_segments, uint32_t live_outputs) const {
    EXPECT_EQ((std::vector<uint32_t>{live[0], live[1], live[2], live[3]}),
              (std::vector<uint32_t>{live_rows, live_segments, live_outputs, 0}));
  }

  uint32_t context = 100;
  Array<uint32_t> block;
  Array<Slot> slots;
  Array<uint32_t> live;
  Array<StepRow> rows;
  Array<StepSegment> segments;
  Array<uint32_t> outputs, status;
};

TEST(StepBegin, RequestsBecomeRows) {
  Data data(8, 4, 4, 3);
  data.slots[0].length = 10;
  data.slots[0].last_token = 77;
  data.slots[2].length = 5;
  data.slots[2].state_version = 3;
  // Two drafted tokens behind the last one, then a prompt that takes back its fifth position.
  data.send({{0, 3}, {2, 2, 4, kSlotState}}, {kLastToken, 21, 22, 31, 32}, {4, 0, 1});
  data.call().run(kernel(), 1);
  data.expect_row(0, {77, 10, 0, kNoToken});
  data.expect_row(1, {21, 11, 0, kNoToken});
  data.expect_row(2, {22, 12, 0, kNoToken});
  data.expect_row(3, {31, 4, 2, kNoToken});
  data.expect_row(4, {32, 5, 2, kNoToken});
  for (const size_t r : {5u, 6u, 7u}) data.expect_row(r, {});
  data.expect_segment(0, {0, 0, 3, 0});
  data.expect_segment(1, {2, 3, 2, 3});
  data.expect_segment(2, {});
  EXPECT_EQ((std::vector<uint32_t>(data.outputs.begin(), data.outputs.end())),
            (std::vector<uint32_t>{4, 0, 1, kIdle}));
  data.expect_live(5, 2, 3);
  for (const uint32_t word : data.status) EXPECT_EQ(word, 0u);
}

TEST(StepBegin, WhatHasStoppedIsIdleAndCostsNothing) {
  Data data(4, 4, 4, 4);
  for (Slot& slot : data.slots) {
    slot.length = 10;
    slot.last_token = 7;
  }
  data.slots[1].stopped = kStopId;
  data.slots[2].limit = 10;
  data.slots[3].length = 100;  // the context's end
  const std::vector<uint32_t> ahead(4, kLastToken), all = {0, 1, 2, 3};
  data.send({{0, 1}, {1, 1}, {2, 1}, {3, 1}}, ahead, all);
  data.call().run(kernel(), 1);
  data.expect_row(0, {7, 10, 0, kNoToken});
  for (const size_t r : {1u, 2u, 3u}) {
    data.expect_row(r, {});
    EXPECT_EQ(data.outputs[r], kIdle);
    data.expect_segment(r, {static_cast<uint32_t>(r), static_cast<uint32_t>(r), 0, 0});
  }
  data.expect_live(1, 4, 1);
  data.slots[0].stopped = kStopLimit;
  data.call().run(kernel(), 1);
  data.expect_live(0, 4, 0);
  for (const uint32_t word : data.status) EXPECT_EQ(word, 0u);
}

TEST(StepBegin, DraftedRowsEndAtTheLimit) {
  Data data(4, 1, 4, 1);
  data.slots[0].length = 10;
  data.slots[0].limit = 12;
  data.send({{0, 4}}, {kLastToken, 1, 2, 3}, {0, 1, 2, 3});
  data.call().run(kernel(), 1);
  data.expect_segment(0, {0, 0, 2, 0});
  data.expect_live(2, 1, 2);
}

TEST(StepBegin, TokensOfTheHostAreComputedWhateverHasStopped) {
  Data data(2, 1, 1, 1);
  data.slots[0].length = 10;
  data.slots[0].stopped = kStopError;
  data.slots[0].limit = 3;
  data.send({{0, 2}}, {5, 6}, {1});
  data.call().run(kernel(), 1);
  data.expect_row(0, {5, 10, 0, kNoToken});
  data.expect_row(1, {6, 11, 0, kNoToken});
}

TEST(StepBegin, WhatIsOutOfRangeIsIdleAndRaisesStatus) {
  Data data(8, 8, 3, 4);
  for (Slot& slot : data.slots) slot.length = 10;
  data.slots[2].length = 99;
  data.send({{0, 1, 11}, {1, 1}, {2, 2}, {4, 1}, {kIdle, 1}, {3, 100, 10}}, {5, 5, 5, 5, 5, 5, 5}, {7, 8, 1});
  data.call().run(kernel(), 1);
  EXPECT_EQ(data.status[0], uint32_t{kPositionOutOfRange});  // a gap behind its length
  EXPECT_EQ(data.status[1], 0u);
  EXPECT_EQ(data.status[2], uint32_t{kPositionOutOfRange});  // past the context
  EXPECT_EQ(data.status[3], 0u);                             // cut to the rows that were sent
  EXPECT_EQ(data.status[4], kSlotOutOfRange | kOutputOutOfRange);
  data.expect_row(1, {5, 10, 1, kNoToken});
  for (const size_t r : {0u, 2u, 3u, 4u, 5u, 7u}) data.expect_row(r, {});
  data.expect_row(6, {5, 10, 3, kNoToken});
  data.expect_live(7, 6, 3);
  EXPECT_EQ(data.outputs[0], kIdle);
  EXPECT_EQ(data.outputs[1], kIdle);
  EXPECT_EQ(data.outputs[2], 1u);
}

TEST(StepBegin, ResolvesWhatTheReferenceResolves) {
  Random random(3);
  for (int round = 0; round < 500; ++round) {
    Data data(12, 5, 6, 4);
    data.context = random.below(3) == 0 ? 8 : 20;
    const bool hostile = random.below(3) == 0;
    for (uint32_t& word : data.block) word = random.below(5) == 0 ? kLastToken : random.below(14);
    data.block[0] = random.below(16);
    data.block[1] = random.below(8);
    data.block[2] = random.below(9);
    if (hostile) {
      for (uint32_t& word : data.block) {
        if (random.below(6) == 0) word = random.next();
      }
    }
    for (Slot& slot : data.slots) {
      slot.length = random.below(12);
      slot.limit = random.below(16);
      slot.last_token = random.below(100);
      slot.stopped = random.below(4) == 0 ? uint32_t{kStopId} : 0;
      slot.state_version = random.below(9);
      if (hostile && random.below(6) == 0) slot.length = 0xFFFFFFFF - random.below(2);
    }
    Data reference = data;
    reference.call().reference(1);
    data.call().run(kernel(), 1);
    EXPECT_TRUE(same_bits(data.live, reference.live)) << round;
    EXPECT_TRUE(same_bits(data.rows, reference.rows)) << round;
    EXPECT_TRUE(same_bits(data.segments, reference.segments)) << round;
    EXPECT_TRUE(same_bits(data.outputs, reference.outputs)) << round;
    EXPECT_TRUE(same_bits(data.status, reference.status)) << round;
  }
}

TEST(StepBegin, CheckNamesWhatIsWrong) {
  const Data data(4, 2, 3, 2);
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u, 5u, 6u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  Call block = data.call();
  block.info(0).shape = {18};
  EXPECT_EQ(block.check_error(), "[step_begin] block: expected at least [19], got [18]");
}

}  // namespace
}  // namespace refrain::ops
