// Rope: every kernel against the reference, and properties of a rotation.
#include "refrain/ops/rope/rope.h"

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;

std::vector<const backend::Kernel*> kernels() { return kernels_of(rope_schema); }

struct Case {
  uint32_t rows, heads, head_dim, pairs;
  bool interleaved;
  float scale = 1, growth = 0;

  Shape shape() const { return {rows, heads, head_dim}; }
  size_t elements() const { return size_t{rows} * heads * head_dim; }
  RopeConstants constants() const {
    return {.interleaved = interleaved ? 1u : 0u, .scale = scale, .growth = growth, .period = 90};
  }
};

struct Data {
  explicit Data(const Case& c, uint64_t seed = 1)
      : input(c.elements()), output(c.elements(), -7.0f), rows(c.rows), frequencies(values(c)) {
    Random random(seed);
    random.fill(input, -4, 4);
    for (size_t r = 0; r < c.rows; ++r)
      rows[r] = {random.next(), random.below(40000), random.next(), random.next()};
    if (c.rows > 2) rows[1].position = 0xFFFFFFFF;
  }
  static PackedWeight values(const Case& c) {
    std::vector<float> list(c.pairs);
    for (size_t i = 0; i < list.size(); ++i) {
      list[i] = std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(c.pairs));
    }
    return plain_weight(DType::f32, {c.pairs}, list, vector_f32());
  }
  Call call(const Case& c, const Array<float>& to) const {
    Call result(rope_schema);
    result.tensor(c.shape(), input).tensor(DType::u32, {c.rows, 4}, rows.data());
    result.weight(frequencies).tensor(c.shape(), to).constants(c.constants());
    return result;
  }

  Array<float> input, output;
  Array<StepRow> rows;
  PackedWeight frequencies;
};

const Case kCases[] = {{1, 1, 2, 1, false},
                       {1, 1, 2, 1, true},
                       {3, 2, 8, 4, false},
                       {3, 2, 8, 4, true},
                       {5, 3, 14, 7, false},
                       {5, 3, 14, 7, true},
                       {4, 2, 64, 32, false},
                       {70, 4, 128, 64, false},
                       {70, 4, 128, 64, true},
                       {9, 2, 34, 17, false},
                       {9, 2, 34, 17, true},
                       {6, 2, 80, 16, false},
                       {6, 2, 80, 16, true},
                       {4, 5, 33, 9, false},
                       {4, 5, 33, 9, true},
                       {65, 16, 96, 48, false},
                       {130, 16, 64, 32, false},
                       {5, 3, 64, 32, false, 1.3f},
                       {6, 2, 80, 16, true, 0.7f},
                       {70, 3, 64, 32, false, 1, 0.1f},
                       {6, 2, 80, 16, true, 1.2f, -0.3f}};

TEST(Rope, EveryKernelIsCloseToTheReference) {
  for (const Case& c : kCases) {
    const Data data(c);
    const Array<float> expected(c.elements(), -7.0f);
    data.call(c, expected).reference(c.rows);
    for (const backend::Kernel* kernel : kernels()) {
      const Array<float> output(c.elements(), -7.0f);
      data.call(c, output).run(*kernel, c.rows);
      // Cosine and sine come within one unit in the last place (2^-23 of a value of at most 1, or 2^-23
      // relative), each product and the sum round once more: (2^-23 + 2 2^-24) (|x| + |y|) = 2^-22 (|x| +
      // |y|), and the reference rounds once.
      const double worst = excess(output, expected, [&](size_t i) {
        const size_t head = i / c.head_dim * c.head_dim;
        double largest = 0;
        for (size_t d = 0; d < c.head_dim; ++d) {
          largest = std::max(largest, std::abs(static_cast<double>(data.input[head + d])));
        }
        const uint32_t row = static_cast<uint32_t>(head / c.head_dim / c.heads);
        const double scale = std::abs(static_cast<double>(c.constants().scale_at(data.rows[row].position)));
        const double units = c.scale == 1 && c.growth == 0 ? 1 : 1.5;
        return (units * 0x1p-22 + kUnitRoundoff) * 2 * scale * largest;
      });
      EXPECT_LE(worst, 0) << kernel->name << ' ' << to_string(c.shape());
      for (size_t i = 0; i < c.elements(); ++i) {
        if (i % c.head_dim >= 2 * c.pairs) {
          EXPECT_EQ(output[i], data.input[i]);
        }
      }
    }
  }
}

TEST(Rope, BitsDoNotDependOnTilesRowsOrAliasing) {
  for (const Case& c : kCases) {
    const Data data(c);
    for (const backend::Kernel* kernel : kernels()) {
      const Array<float> whole(c.elements(), -7.0f);
      data.call(c, whole).run(*kernel, c.rows);
      for (const Walk& walk : kWalks) {
        const Array<float> output(c.elements(), -7.0f);
        data.call(c, output).run(*kernel, c.rows, walk);
        EXPECT_TRUE(same_bits(whole, output)) << kernel->name;
      }
      Data in_place(c);
      in_place.call(c, in_place.input).run(*kernel, c.rows);
      EXPECT_TRUE(same_bits(whole, in_place.input)) << kernel->name;

      const size_t row_elements = size_t{c.heads} * c.head_dim;
      for (const uint32_t live : {0u, 1u, c.rows / 2, c.rows + 5}) {
        const Array<float> output(c.elements(), -7.0f);
        data.call(c, output).run(*kernel, live);
        for (size_t i = 0; i < c.elements(); ++i) {
          ASSERT_EQ(output[i], i / row_elements < live ? whole[i] : -7.0f) << kernel->name << ' ' << i;
        }
      }
      // A row alone, as a call of one row.
      Case one = c;
      one.rows = 1;
      const size_t last = c.rows - 1;
      Data single(one);
      std::copy_n(data.input.data() + last * row_elements, row_elements, single.input.data());
      single.rows[0] = data.rows[last];
      single.call(one, single.output).run(*kernel, 1);
      EXPECT_EQ(std::memcmp(single.output.data(), whole.data() + last * row_elements, row_elements * 4), 0);
    }
  }
}

TEST(Rope, KernelsOfOneNumericsClassGiveTheSameBits) {
  for (const Case& c : kCases) {
    const Data data(c);
    std::vector<Array<float>> results;
    for (const backend::Kernel* kernel : kernels()) {
      EXPECT_EQ(kernel->numerics, kernels()[0]->numerics);
      results.emplace_back(c.elements());
      data.call(c, results.back()).run(*kernel, c.rows);
      EXPECT_TRUE(same_bits(results[0], results.back())) << kernel->name;
    }
  }
}

TEST(Rope, PositionZeroIsTheIdentity) {
  const Case c{4, 2, 16, 8, false};
  const Data data(c);
  for (StepRow& row : data.rows) row.position = 0;
  for (const backend::Kernel* kernel : kernels()) {
    const Array<float> output(c.elements());
    data.call(c, output).run(*kernel, c.rows);
    EXPECT_TRUE(same_bits(output, data.input)) << kernel->name;
  }
}

TEST(Rope, CheckNamesWhatIsWrong) {
  const Case c{4, 2, 16, 8, false};
  const Data data(c);
  EXPECT_EQ(data.call(c, data.output).check_error(), "");
  const auto error_with = [&](auto change) {
    Call call = data.call(c, data.output);
    change(call);
    return call.check_error();
  };
  EXPECT_EQ(error_with([](Call& call) {
              call.info(3).shape = {4, 2, 15};
            }),
            "[rope] output: expected [4, 2, 16], got [4, 2, 15]");
  EXPECT_NE(error_with([](Call& call) { call.info(0).shape = {4, 32}; }), "");
  EXPECT_NE(error_with([](Call& call) { call.info(0).dtype = DType::f16; }), "");
  EXPECT_NE(error_with([](Call& call) { call.info(1).shape = {3, 4}; }), "");
  EXPECT_NE(error_with([](Call& call) { call.info(1).dtype = DType::i32; }), "");
  EXPECT_NE(error_with([](Call& call) { call.info(3).bound = false; }), "");
  EXPECT_EQ(error_with([](Call& call) { call.constants(RopeConstants{.scale = INFINITY}); }),
            "[rope] scale: expected a finite number, got inf");
  EXPECT_EQ(error_with([](Call& call) { call.constants(RopeConstants{.growth = NAN, .period = 1}); }),
            "[rope] growth: expected a finite number, got nan");
  EXPECT_EQ(error_with([](Call& call) { call.constants(RopeConstants{.growth = 0.1f}); }),
            "[rope] period: expected 1 or more with growth, got 0");
  const PackedWeight wide = Data::values({1, 1, 18, 9, false});
  Call call(rope_schema);
  call.tensor(c.shape(), data.input).tensor(DType::u32, {4, 4}, data.rows.data()).weight(wide);
  call.tensor(c.shape(), data.output);
  EXPECT_EQ(call.check_error(), "[rope] frequencies: expected at most half of head_dim, [8], got [9]");
}

}  // namespace
}  // namespace refrain::ops
