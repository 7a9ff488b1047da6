// Gathering of rows: the kernel against the reference, hostile indices.
#include "refrain/ops/gather_rows/gather_rows.h"

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

const backend::Kernel& kernel() { return kernel_of(gather_rows_schema); }

struct Data {
  Data(uint32_t input_rows, uint32_t outputs, uint32_t columns)
      : constants{input_rows, outputs, columns, 3},
        input(size_t{input_rows} * columns),
        output(size_t{outputs} * columns, -7.0f),
        index(outputs),
        live(1, input_rows),
        status(4) {
    Random random(columns);
    random.fill(input);
    for (uint32_t& i : index) i = random.below(input_rows);
  }
  Call call() const {
    Call result(gather_rows_schema);
    result.tensor({constants.input_rows, constants.columns}, input).tensor({constants.output_rows}, index);
    result.tensor({1}, live).tensor({4}, status).tensor({constants.output_rows, constants.columns}, output);
    return result;
  }
  GatherRowsConstants constants;
  Array<float> input, output;
  Array<uint32_t> index, live, status;
};

TEST(GatherRows, GivesWhatTheReferenceGives) {
  for (const uint32_t columns : {1u, 7u, 256u, 5000u}) {
    const Data data(9, 40, columns);
    for (const uint32_t live : {0u, 1u, 13u, 40u, 99u}) {
      Data reference = data;
      reference.call().reference(std::min(live, 40u));
      for (const Walk& walk : kWalks) {
        Data copy = data;
        copy.call().run(kernel(), live, walk);
        EXPECT_TRUE(same_bits(copy.output, reference.output));
        EXPECT_EQ(copy.status[3], 0u);
      }
    }
  }
}

TEST(GatherRows, HostileIndicesGiveZerosAndRaiseStatus) {
  for (const auto& [index, live] :
       {std::pair{9u, 9u}, {0xFFFFFFFEu, 9u}, {5u, 5u}, {9u, 0xFFFFFFFFu}, {0u, 0u}}) {
    Data data(9, 3, 16);
    data.index[0] = 0;
    data.index[1] = index;
    data.index[2] = 1;
    data.live[0] = live;
    Data reference = data;
    data.call().run(kernel(), 3);
    reference.call().reference(3);
    EXPECT_TRUE(same_bits(data.output, reference.output));
    for (size_t k = 0; k < 16; ++k) EXPECT_EQ(data.output[16 + k], 0.0f);
    EXPECT_EQ(data.output[0], live == 0 ? 0.0f : data.input[0]);
    EXPECT_EQ(data.status[3], uint32_t{kOutputOutOfRange});
    for (size_t word = 0; word < 3; ++word) EXPECT_EQ(data.status[word], 0u);
  }
}

TEST(GatherRows, AnIdleOutputGivesZerosWithoutStatus) {
  Data data(9, 3, 16);
  data.index[1] = kIdle;
  Data reference = data;
  data.call().run(kernel(), 3);
  reference.call().reference(3);
  EXPECT_TRUE(same_bits(data.output, reference.output));
  for (size_t k = 0; k < 16; ++k) EXPECT_EQ(data.output[16 + k], 0.0f);
  for (const Data& run : {data, reference}) {
    for (const uint32_t word : run.status) EXPECT_EQ(word, 0u);
  }
}

TEST(GatherRows, CheckNamesWhatIsWrong) {
  const Data data(9, 3, 16);
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  Call output = data.call();
  output.info(4).shape = {3, 15};
  EXPECT_EQ(output.check_error(), "[gather_rows] output: expected [3, 16], got [3, 15]");
}

}  // namespace
}  // namespace refrain::ops
