// embedding: kernels and the reference against decode, rows that name nothing, live rows, splits, errors.
#include "refrain/ops/embedding/embedding.h"

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

constexpr uint32_t kSlots = 3;

std::vector<const backend::Kernel*> kernels() { return kernels_of(embedding_schema); }

Call call_of(const PackedWeight& weight, const Array<uint32_t>& rows, const Array<uint32_t>& status,
             const Array<float>& output, float scale = 1) {
  const auto count = static_cast<uint32_t>(rows.size() / 4);
  const backend::WeightInfo& info = weight.info;
  Call call(embedding_schema);
  call.weight(weight).tensor({count, 4}, rows).tensor({kSlots + 1}, status);
  call.tensor({count, info.shape[1]}, output);
  call.constants(EmbeddingConstants{.scale = scale});
  return call;
}

std::vector<PackedWeight> weights(int64_t vocabulary, Random& random) {
  std::vector<PackedWeight> list;
  for (const WeightFormat* format : matrix_formats()) {
    list.push_back(
        random_weight(*format, vocabulary, format->bits == 0 ? 27 : 3 * format->block_elements, random));
  }
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    list.push_back(random_weight(format::plain(dtype), vocabulary, 20000, random));
  return list;
}

TEST(Embedding, MatchesDecodeBitForBitAndRefusesRowsThatNameNothing) {
  Random random;
  constexpr uint32_t kVocabulary = 11, kRows = 9;
  Array<uint32_t> rows(kRows * 4);
  for (uint32_t r = 0; r < kRows; ++r) {
    rows[r * 4] = random.below(kVocabulary);
    rows[r * 4 + 2] = random.below(kSlots);
  }
  rows[2 * 4] = kVocabulary;  // slot 1
  rows[2 * 4 + 2] = 1;
  rows[3 * 4] = UINT32_MAX;  // slot 2
  rows[3 * 4 + 2] = 2;
  rows[5 * 4 + 2] = kSlots;
  rows[6 * 4 + 2] = UINT32_MAX - 1;
  rows[6 * 4] = UINT32_MAX;
  rows[7 * 4 + 2] = kIdle;
  for (const PackedWeight& weight : weights(kVocabulary, random)) {
    const auto columns = static_cast<size_t>(weight.info.shape[1]);
    for (const uint32_t live : {0u, 1u, 4u, kRows, kRows + 1}) {
      Array<float> expected(kRows * columns, -7);
      Array<uint32_t> expected_status(kSlots + 1, 128);
      for (size_t r = 0; r < std::min(live, kRows); ++r) {
        const bool zero = r == 2 || r == 3 || r == 5 || r == 6 || r == 7;
        for (size_t k = 0; k < columns; ++k) {
          expected[r * columns + k] = zero ? 0 : weight.values[rows[r * 4] * columns + k];
        }
        if (r == 2 || r == 3) expected_status[rows[r * 4 + 2]] |= kTokenOutOfRange;
        if (r == 5 || r == 6) expected_status[kSlots] |= kSlotOutOfRange;
      }
      Array<float> reference(kRows * columns, -7);
      Array<uint32_t> reference_status(kSlots + 1, 128);
      const Call call = call_of(weight, rows, reference_status, reference);
      call.reference(std::min(live, kRows));
      EXPECT_TRUE(same_bits(expected_status, reference_status));
      EXPECT_TRUE(same_bits(expected, reference)) << weight.info.format->name;
      for (const backend::Kernel* kernel : kernels()) {
        for (const Walk& walk : kWalks) {
          Array<float> got(kRows * columns, -7);
          Array<uint32_t> status(kSlots + 1, 128);
          call_of(weight, rows, status, got).run(*kernel, live, walk);
          EXPECT_TRUE(same_bits(expected, got))
              << kernel->name << " " << weight.info.format->name << " live " << live;
          EXPECT_TRUE(same_bits(expected_status, status)) << kernel->name << " live " << live;
        }
      }
    }
  }
}

TEST(Embedding, ManyRowsInSmallTiles) {
  Random random;
  const PackedWeight weight = random_plain_weight(DType::bf16, {50, 96}, rows(), random);
  constexpr uint32_t kRows = 700;
  Array<uint32_t> rows(kRows * 4);
  for (uint32_t r = 0; r < kRows; ++r) rows[r * 4] = random.below(50);
  Array<float> expected(kRows * 96), got(kRows * 96);
  Array<uint32_t> status(kSlots + 1);
  call_of(weight, rows, status, expected).reference(kRows);
  for (const backend::Kernel* kernel : kernels()) {
    for (const Walk& walk : kWalks) {
      std::fill(got.begin(), got.end(), -7.0f);
      call_of(weight, rows, status, got).run(*kernel, kRows, walk);
      EXPECT_TRUE(same_bits(expected, got)) << kernel->name;
    }
  }
}

TEST(Embedding, AScaleIsOneMoreProduct) {
  Random random;
  constexpr uint32_t kRows = 3;
  Array<uint32_t> rows(kRows * 4), status(kSlots + 1);
  for (uint32_t r = 0; r < kRows; ++r) rows[r * 4] = random.below(11);
  rows[2 * 4] = 11;  // names nothing
  for (const PackedWeight& weight : weights(11, random)) {
    const auto columns = static_cast<size_t>(weight.info.shape[1]);
    Array<float> plain(kRows * columns), scaled(kRows * columns), reference(kRows * columns);
    call_of(weight, rows, status, reference, 33.9f).reference(kRows);
    for (const backend::Kernel* kernel : kernels()) {
      call_of(weight, rows, status, plain).run(*kernel, kRows);
      call_of(weight, rows, status, scaled, 33.9f).run(*kernel, kRows);
      for (size_t i = 0; i < plain.size(); ++i) ASSERT_EQ(scaled[i], plain[i] * 33.9f) << kernel->name;
      EXPECT_TRUE(same_bits(reference, scaled)) << kernel->name;
    }
  }
  const PackedWeight weight = weights(11, random)[0];
  Array<float> output(kRows * static_cast<size_t>(weight.info.shape[1]));
  EXPECT_EQ(call_of(weight, rows, status, output, INFINITY).check_error(),
            "[embedding] scale: expected a finite number, got inf");
}

TEST(Embedding, RefusesWhatDoesNotFit) {
  Random random;
  const PackedWeight weight = random_plain_weight(DType::bf16, {5, 6}, rows(), random);
  Array<uint32_t> rows(8), status(kSlots + 1);
  Array<float> output(12);
  EXPECT_EQ(call_of(weight, rows, status, output).check_error(), "");
  Call call = call_of(weight, rows, status, output);
  call.info(1).shape = {4, 2};
  EXPECT_EQ(call.check_error(), "[embedding] rows: expected [4, 4], got [4, 2]");
  call = call_of(weight, rows, status, output);
  call.info(3).shape = {2, 5};
  EXPECT_EQ(call.check_error(), "[embedding] output: expected [2, 6], got [2, 5]");
  call = call_of(weight, rows, status, output);
  call.info(2).dtype = DType::i32;
  EXPECT_EQ(call.check_error(), "[embedding] status: expected u32, got i32");
  const PackedWeight vector = random_plain_weight(DType::f32, {6}, vector_f32(), random);
  call = call_of(weight, rows, status, output);
  call.info(0) = {true, DType::f32, Shape{6}, &vector.info, vector.layout};
  EXPECT_EQ(call.check_error(),
            "[embedding] weight: expected a weight packed for gather, got layout vector_f32");
}

}  // namespace
}  // namespace refrain::ops
