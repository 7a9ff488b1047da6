// Advance of the step block: the kernel against the reference, ends of the ranges, hostile sequences.
#include "refrain/ops/step_advance/step_advance.h"

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

const backend::Kernel& kernel() { return step_advance_cpu_kernels()[0]; }

struct Data {
  explicit Data(uint32_t row_count, uint32_t sequence_count)
      : rows(row_count), sequences(sequence_count), tokens(row_count, 0xDDDDDDDDu) {
    Random random(row_count);
    for (StepRow& row : rows)
      row = {random.next(), random.below(5000), random.below(sequence_count), random.next()};
    for (StepSequence& sequence : sequences) sequence = {random.next(), 1, 2, 0, 0.5f, 0.5f, random.next()};
  }
  Call call(bool with_tokens = true) const {
    Call result(step_advance_schema);
    const auto row_count = static_cast<uint32_t>(rows.size());
    const auto sequence_count = static_cast<uint32_t>(sequences.size());
    result.tensor(DType::u32, {row_count, 4}, rows.data());
    result.tensor(DType::u32, {sequence_count, 8}, sequences.data());
    if (with_tokens) {
      result.tensor({row_count}, tokens);
    } else {
      result.none();
    }
    result.constants(StepAdvanceConstants{row_count, sequence_count});
    return result;
  }
  Array<StepRow> rows;
  Array<StepSequence> sequences;
  Array<uint32_t> tokens;
};

TEST(StepAdvance, TakesTheSampledTokenAndMovesOn) {
  Data data(1, 1);
  data.rows[0] = {5, 41, 0, 17};
  data.sequences[0].length = 42;
  data.call().run(kernel(), 1);
  EXPECT_EQ(data.rows[0].token, 17u);
  EXPECT_EQ(data.rows[0].position, 42u);
  EXPECT_EQ(data.rows[0].sequence, 0u);
  EXPECT_EQ(data.rows[0].sampled, 17u);
  EXPECT_EQ(data.sequences[0].length, 43u);
  EXPECT_EQ(data.sequences[0].temperature, 0.5f);
  EXPECT_EQ(data.tokens[0], 17u);
}

TEST(StepAdvance, TokensAreOptional) {
  Data data(3, 1), with(3, 1);
  data.call(false).run(kernel(), 2);
  with.call().run(kernel(), 2);
  EXPECT_TRUE(same_bits(data.rows, with.rows));
  EXPECT_EQ(data.tokens[0], 0xDDDDDDDDu);
  EXPECT_EQ(with.tokens[1], with.rows[1].sampled);
  EXPECT_EQ(with.tokens[2], 0xDDDDDDDDu) << "this row is not live";
  data.call(false).reference(2);
}

TEST(StepAdvance, ChangesWhatTheReferenceChanges) {
  for (const uint32_t live : {0u, 1u, 6u, 17u}) {
    const Data data(17, 5);
    Data reference = data;
    reference.call().reference(live);
    for (const Walk& walk : kWalks) {
      Data copy = data;
      copy.call().run(kernel(), live, walk);
      EXPECT_TRUE(same_bits(copy.rows, reference.rows));
      EXPECT_TRUE(same_bits(copy.sequences, reference.sequences));
      EXPECT_TRUE(same_bits(copy.tokens, reference.tokens));
    }
  }
}

TEST(StepAdvance, HostileValuesStayInBounds) {
  Data data(4, 2);
  data.rows[0] = {1, 0xFFFFFFFF, 0, 9};
  data.rows[1] = {1, 0xFFFFFFFE, 1, 9};
  data.rows[2] = {1, 7, 2, 9};
  data.rows[3] = {1, 8, 0xFFFFFFFF, 9};
  Data reference = data;
  data.call().run(kernel(), 4);
  reference.call().reference(4);
  EXPECT_EQ(data.rows[0].position, 0xFFFFFFFFu);
  EXPECT_EQ(data.sequences[0].length, 0xFFFFFFFFu);
  EXPECT_EQ(data.rows[1].position, 0xFFFFFFFFu);
  EXPECT_EQ(data.sequences[1].length, 0xFFFFFFFFu);
  EXPECT_EQ(data.rows[2].position, 8u);
  EXPECT_TRUE(same_bits(data.rows, reference.rows));
  EXPECT_TRUE(same_bits(data.sequences, reference.sequences));
}

TEST(StepAdvance, CheckNamesWhatIsWrong) {
  const Data data(4, 2);
  EXPECT_EQ(data.call().check_error(), "");
  Call rows = data.call();
  rows.info(0).shape = {4, 5};
  EXPECT_EQ(rows.check_error(), "[step_advance] rows: expected [4, 4], got [4, 5]");
  Call sequences = data.call();
  sequences.info(1).dtype = DType::f32;
  EXPECT_NE(sequences.check_error(), "");
  Call tokens = data.call();
  tokens.info(2).shape = {3};
  EXPECT_EQ(tokens.check_error(), "[step_advance] tokens: expected [4], got [3]");
}

}  // namespace
}  // namespace refrain::ops
