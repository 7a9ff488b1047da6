// Attention: every kernel against the reference, the same bits however the batch is cut, hostile values,
// AVX2's exp.
#include "refrain/ops/attention/attention.h"

#include "refrain/ops/test_step.h"
#if defined(__x86_64__)
#include "refrain/ops/simd_avx2.h"
#endif

namespace refrain::ops {
namespace {

using namespace harness;
using Positions = std::vector<TestStep::Position>;

std::vector<const backend::Kernel*> kernels() { return kernels_of(attention_schema); }

struct Heads {
  uint32_t heads, kv_heads, head_dim;
};

struct Data {
  Data(TestStep test_step, const Heads& shape, float range = 1, uint32_t positions_attended = 0)
      : step(std::move(test_step)),
        h(shape),
        window(positions_attended),
        scale(1 / std::sqrt(static_cast<float>(shape.head_dim))),
        query(step.rows.size() * shape.heads * shape.head_dim),
        cache(step.cache_elements(shape.kv_heads, shape.head_dim)),
        output(query.size(), -7.0f) {
    Random random(9);
    random.fill(query, -range, range);
    random.fill(cache, -range, range);
  }

  uint32_t capacity() const { return static_cast<uint32_t>(step.rows.size()); }
  size_t row_elements() const { return size_t{h.heads} * h.head_dim; }
  Call call() const {
    const Shape shape{capacity(), h.heads, h.head_dim};
    Call result(attention_schema);
    result.tensor(shape, query).tensor(DType::u32, step.rows_shape(), step.rows.data());
    result.tensor(step.table_shape(), step.page_table)
        .tensor(step.cache_shape(h.kv_heads, h.head_dim), cache);
    result.tensor(step.status_shape(), step.status).tensor(shape, output);
    result.constants(AttentionConstants{capacity(), h.heads, h.kv_heads, h.head_dim, step.slots(),
                                        step.pages_per_slot, step.cache_pages, scale, window});
    return result;
  }
  const float* vector(uint32_t kind, const StepRow& row, uint32_t position, size_t kv_head) const {
    const uint32_t page = step.page(row.slot, position);
    return cache.data() +
           CacheGeometry{step.cache_pages, h.kv_heads, h.head_dim}.unit_offset(
               kind, page, static_cast<uint32_t>(kv_head)) +
           size_t{position % kPagePositions} * h.head_dim;
  }
  /// The first position that a row attends to.
  uint32_t begin(const StepRow& row) const {
    return window == 0 || row.position < window ? 0 : row.position - window + 1;
  }
  /// Positions of the pages that no row may look at become NaN.
  void poison_unused() const {
    Array<uint8_t> used(cache.size());
    for (const StepRow& row : step.rows) {
      if (row.slot >= step.slots()) continue;
      for (uint32_t p = begin(row); p <= row.position; ++p) {
        for (uint32_t kind = 0; kind < 2; ++kind) {
          for (uint32_t k = 0; k < h.kv_heads; ++k) {
            std::fill_n(used.data() + (vector(kind, row, p, k) - cache.data()), h.head_dim, uint8_t{1});
          }
        }
      }
    }
    for (size_t i = 0; i < cache.size(); ++i) {
      if (used[i] == 0) cache[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  TestStep step;
  Heads h;
  uint32_t window;
  float scale;
  Array<float> query, cache, output;
};

/// The bound that the docstring of attention() states, for one row and head.
double tolerance(const Data& data, size_t row, size_t head) {
  const StepRow& step_row = data.step.rows[row];
  const size_t kv_head = head / (data.h.heads / data.h.kv_heads);
  const float* query = data.query.data() + row * data.row_elements() + head * data.h.head_dim;
  double largest_key = 0, largest_value = 0, query_norm = 0, least = INFINITY, greatest = -INFINITY;
  for (size_t d = 0; d < data.h.head_dim; ++d)
    query_norm += static_cast<double>(query[d]) * static_cast<double>(query[d]);
  for (uint32_t j = data.begin(step_row); j <= step_row.position; ++j) {
    const float* key = data.vector(0, step_row, j, kv_head);
    const float* value = data.vector(1, step_row, j, kv_head);
    double norm = 0, score = 0;
    for (size_t d = 0; d < data.h.head_dim; ++d) {
      norm += static_cast<double>(key[d]) * static_cast<double>(key[d]);
      score += static_cast<double>(key[d]) * static_cast<double>(query[d]) * static_cast<double>(data.scale);
      largest_value = std::max(largest_value, std::abs(static_cast<double>(value[d])));
    }
    largest_key = std::max(largest_key, norm);
    least = std::min(least, score);
    greatest = std::max(greatest, score);
  }
  // A dot product of D terms errs by at most (D + 1) e sum |q||k| <= (D + 1) e |q||k|, the scale rounds twice
  // more. A score that errs by d, and rounds by e (max - min) when the greatest is taken off, changes its
  // weight by a factor 1 + d, and the quotient of two sums by 1 + 2 d. Within a block the sums round at most
  // 64 times, exp twice, a join six times for each of p / 64 blocks, in numerator and denominator: 2 (64 + 4
  // + ...) + 12 p / 64 e.
  const double e = kUnitRoundoff;
  const double score_error =
      (data.h.head_dim + 4) * e * static_cast<double>(data.scale) * std::sqrt(query_norm * largest_key) +
      e * (greatest - least);
  return (2 * score_error + (step_row.position / 32.0 + 200) * e) * largest_value;
}

const Heads kHeads[] = {{1, 1, 1},  {2, 1, 8},  {4, 2, 16},   {3, 3, 12},
                        {6, 2, 40}, {5, 1, 64}, {16, 8, 128}, {2, 2, 100}};

Positions edge_positions() {
  Positions positions;
  for (const uint32_t p : {0u, 1u, 62u, 63u, 64u, 65u, 127u, 128u, 129u, 299u}) positions.emplace_back(1, p);
  for (const uint32_t p : {63u, 64u}) positions.emplace_back(0, p);
  positions.emplace_back(2, 0);
  return positions;
}

TEST(Attention, EveryKernelIsCloseToTheReference) {
  for (const Heads& heads : kHeads) {
    for (const float range : {1.0f, 6.0f}) {
      for (const uint32_t capacity : {13u, 40u}) {
        Random random(21);
        const Data base(TestStep({65, 300, 1}, edge_positions(), capacity, random), heads, range);
        base.poison_unused();
        const Data expected = base;
        expected.call().reference(13);
        std::vector<double> bounds;
        for (size_t i = 0; i < size_t{13} * heads.heads; ++i) {
          bounds.push_back(tolerance(base, i / heads.heads, i % heads.heads));
        }
        for (const backend::Kernel* kernel : kernels()) {
          const Data data = base;
          data.call().run(*kernel, 13);
          const double worst =
              excess(data.output, expected.output, [&](size_t i) { return bounds[i / heads.head_dim]; });
          EXPECT_LE(worst, 0) << kernel->name << ' ' << heads.heads << ' ' << heads.kv_heads << ' '
                              << heads.head_dim;
          for (const uint32_t word : data.step.status) EXPECT_EQ(word, 0u);
        }
      }
    }
  }
}

// Windows that begin within a page, at its ends, and before the sequence; what lies before them is NaN.
TEST(Attention, AWindowIsItsPositionsAlone) {
  for (const Heads& heads : {Heads{4, 2, 16}, Heads{6, 2, 40}, Heads{1, 1, 1}}) {
    for (const uint32_t window : {1u, 2u, 63u, 64u, 65u, 130u, 1000u}) {
      for (const uint32_t capacity : {13u, 40u}) {
        Random random(21);
        const Data base(TestStep({65, 300, 1}, edge_positions(), capacity, random), heads, 1, window);
        base.poison_unused();
        const Data expected = base;
        expected.call().reference(13);
        for (const backend::Kernel* kernel : kernels()) {
          const Data data = base;
          data.call().run(*kernel, 13);
          const double worst = excess(data.output, expected.output, [&](size_t i) {
            const size_t head = i / heads.head_dim;
            return tolerance(base, head / heads.heads, head % heads.heads);
          });
          EXPECT_LE(worst, 0) << kernel->name << " window " << window;
          for (const uint32_t word : data.step.status) EXPECT_EQ(word, 0u);
        }
      }
    }
  }
}

TEST(Attention, PagesBeforeTheWindowMayBeGone) {
  Random random(4);
  Data data(TestStep({300}, {{0, 299}, {0, 170}}, 2, random), {4, 2, 16}, 1, 64);
  const Data whole = data;
  for (const uint32_t entry : {0u, 1u}) {  // 170 - 63 = 107 is on page 1
    data.step.page(0, entry * kPagePositions) = 0xFFFFFFFF;
    for (const backend::Kernel* kernel : kernels()) {
      whole.call().run(*kernel, 2);
      data.call().run(*kernel, 2);
      EXPECT_EQ(data.step.status[0], entry == 0 ? 0u : kPageOutOfRange) << kernel->name;
      for (size_t i = 0; i < data.row_elements(); ++i) EXPECT_EQ(data.output[i], whole.output[i]);
      data.step.status[0] = 0;
    }
  }
}

TEST(Attention, AWindowOfEverythingHasTheBitsOfNone) {
  Random random(4);
  const Data none(TestStep({300}, {{0, 299}, {0, 170}}, 2, random), {4, 2, 16});
  Data wide = none;
  wide.window = 300;
  for (const backend::Kernel* kernel : kernels()) {
    none.call().run(*kernel, 2);
    wide.call().run(*kernel, 2);
    EXPECT_TRUE(same_bits(none.output, wide.output)) << kernel->name;
  }
}

TEST(Attention, BitsDoNotDependOnWalksOrLiveRows) {
  for (const Heads& heads : {Heads{4, 2, 16}, Heads{6, 2, 40}}) {
    Random random(22);
    Positions positions;
    for (uint32_t p = 30; p < 70; ++p) positions.emplace_back(p % 3 == 0 ? 1u : 0u, p);
    const Data base(TestStep({70, 70}, positions, 40, random), heads);
    for (const backend::Kernel* kernel : kernels()) {
      const Data whole = base;
      whole.call().run(*kernel, 40);
      for (const Walk& walk : kWalks) {
        const Data data = base;
        data.call().run(*kernel, 40, walk);
        EXPECT_TRUE(same_bits(data.output, whole.output)) << kernel->name;
      }
      for (const uint32_t live : {0u, 1u, 17u, 100u}) {
        const Data data = base;
        data.call().run(*kernel, live);
        for (size_t i = 0; i < data.output.size(); ++i) {
          ASSERT_EQ(data.output[i], i / data.row_elements() < live ? whole.output[i] : -7.0f) << kernel->name;
        }
      }
    }
  }
}

// Rows of a prompt in one large batch (eight rows a tile), in small ones and alone; neighbours change, bits
// do not.
TEST(Attention, BitsDoNotDependOnHowABatchIsCut) {
  for (const auto& [heads, window] : {std::pair(Heads{4, 2, 16}, 0u), std::pair(Heads{6, 2, 40}, 50u),
                                      std::pair(Heads{3, 1, 64}, 0u), std::pair(Heads{3, 1, 64}, 64u)}) {
    Random random(23);
    Positions positions;
    for (uint32_t p = 0; p < 135; ++p) positions.emplace_back(0, p);
    for (uint32_t p = 0; p < 20; ++p) positions.emplace_back(1, p);
    const Data whole(TestStep({135, 20}, positions, 155, random), heads, 1, window);
    for (const backend::Kernel* kernel : kernels()) {
      whole.call().run(*kernel, 155);
      for (const uint32_t capacity : {1u, 5u, 32u, 64u}) {
        for (uint32_t first = 0; first < 155; first += capacity) {
          const uint32_t live = std::min(capacity, 155 - first);
          Data part = whole;
          part.step.rows = Array<StepRow>(capacity, StepRow{0, 0xFFFFFFFE, 0xFFFFFFFE, 0});
          std::copy_n(whole.step.rows.data() + first, live, part.step.rows.data());
          part.query = Array<float>(capacity * whole.row_elements(), std::numeric_limits<float>::quiet_NaN());
          std::copy_n(whole.query.data() + first * whole.row_elements(), live * whole.row_elements(),
                      part.query.data());
          part.output = Array<float>(part.query.size(), -7.0f);
          part.call().run(*kernel, live);
          ASSERT_EQ(std::memcmp(part.output.data(), whole.output.data() + first * whole.row_elements(),
                                live * whole.row_elements() * sizeof(float)),
                    0)
              << kernel->name << ' ' << capacity << ' ' << first;
        }
      }
    }
  }
}

TEST(Attention, BitsDoNotDependOnWhichPagesHoldASequence) {
  for (const backend::Kernel* kernel : kernels()) {
    Array<float> first(0);
    for (const uint64_t seed : {1u, 2u, 3u}) {
      Random random(seed);
      Data data(TestStep({40, 200}, {{1, 199}, {1, 64}, {0, 39}}, 3, random), {4, 2, 24});
      // The same vectors at the same positions, wherever their pages are.
      for (uint32_t s = 0; s < 2; ++s) {
        StepRow row;
        row.slot = s;
        Random values(s + 50);
        for (uint32_t p = 0; p < data.step.lengths[s]; ++p) {
          for (uint32_t kind = 0; kind < 2; ++kind) {
            for (size_t k = 0; k < 2; ++k) {
              float* to = data.cache.data() + (data.vector(kind, row, p, k) - data.cache.data());
              for (size_t d = 0; d < 24; ++d) to[d] = values.uniform();
            }
          }
        }
      }
      data.call().run(*kernel, 3);
      if (first.size() == 0) first = data.output;
      EXPECT_TRUE(same_bits(first, data.output)) << kernel->name;
    }
  }
}

TEST(Attention, HostileValuesGiveZerosAndRaiseStatus) {
  const auto run = [](const auto& spoil, uint32_t word, uint32_t bits) {
    for (const uint32_t capacity : {2u, 32u}) {
      for (const backend::Kernel* kernel : kernels()) {
        Random random(4);
        Data data(TestStep({130, 64}, {{0, 129}, {1, 5}}, capacity, random), {4, 2, 16});
        spoil(data.step);
        const Data reference = data;
        const Array<float> cache = data.cache;
        data.call().run(*kernel, 1);
        for (size_t i = 0; i < data.row_elements(); ++i) EXPECT_EQ(data.output[i], 0.0f) << kernel->name;
        for (size_t i = 0; i < data.step.status.size(); ++i) {
          EXPECT_EQ(data.step.status[i], i == std::min<size_t>(word, 2) ? bits : 0u) << kernel->name;
        }
        data.call().run(*kernel, 2);
        reference.call().reference(2);
        for (size_t i = data.row_elements(); i < 2 * data.row_elements(); ++i) {
          EXPECT_NEAR(data.output[i], reference.output[i], 1e-5f) << kernel->name;
        }
        EXPECT_TRUE(same_bits(data.step.status, reference.step.status));
        EXPECT_TRUE(same_bits(cache, data.cache));
      }
    }
  };
  for (const HostileRow& hostile : hostile_rows()) {
    run([&](TestStep& step) { step.rows[0] = hostile.row; }, hostile.word, hostile.bits);
  }
  for (const uint32_t position : {0u, 64u, 129u}) {
    for (const uint32_t page : {0xFFFFFFFFu, 7u}) {
      run([&](TestStep& step) { step.page(0, position) = page; }, 0, kPageOutOfRange);
    }
  }
}

TEST(Attention, InfinitiesAndNansStayInTheirRow) {
  for (const backend::Kernel* kernel : kernels()) {
    Random random(4);
    const Data clean(TestStep({130}, {{0, 129}, {0, 128}}, 2, random), {4, 2, 16});
    const Data dirty = clean;
    for (size_t i = 0; i < dirty.row_elements(); ++i) {
      dirty.query[i] = i % 2 == 0 ? INFINITY : std::numeric_limits<float>::quiet_NaN();
    }
    clean.call().run(*kernel, 2);
    dirty.call().run(*kernel, 2);
    for (size_t i = clean.row_elements(); i < 2 * clean.row_elements(); ++i) {
      EXPECT_EQ(clean.output[i], dirty.output[i]);
    }
  }
}

TEST(Attention, CheckNamesWhatIsWrong) {
  Random random(4);
  const Data data(TestStep({130, 64}, {{0, 129}, {1, 0}}, 2, random), {4, 2, 16});
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u, 5u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  Call output = data.call();
  output.info(5).shape = {2, 4, 8};
  EXPECT_EQ(output.check_error(), "[attention] output: expected [2, 4, 16], got [2, 4, 8]");
  Call groups = data.call();
  groups.info(3).shape = {2, 7, 3, 64, 16};
  EXPECT_EQ(groups.check_error(),
            "[attention] query: expected heads divisible by 3 kv_heads, got [2, 4, 16]");
}

#if defined(__x86_64__)
REFRAIN_AVX2 float exp_avx2(float x) { return _mm256_cvtss_f32(avx2::exp(_mm256_set1_ps(x))); }

TEST(Attention, ExpOfAvx2IsWithinTwoUnitsInTheLastPlace) {
  if ((machine_features() & backend::kFeatureAvx2) == 0) GTEST_SKIP() << "no AVX2";
  EXPECT_EQ(exp_avx2(0.0f), 1.0f);
  EXPECT_EQ(exp_avx2(-INFINITY), 0.0f);
  EXPECT_EQ(exp_avx2(INFINITY), INFINITY);
  EXPECT_EQ(exp_avx2(-1e30f), 0.0f);
  EXPECT_TRUE(std::isnan(exp_avx2(std::numeric_limits<float>::quiet_NaN())));
  double worst = 0;
  // Every 37th float from 2^-30 to 104 and its negative.
  for (uint32_t bits = std::bit_cast<uint32_t>(0x1p-30f); bits < std::bit_cast<uint32_t>(104.0f);
       bits += 37) {
    for (const float x : {std::bit_cast<float>(bits), -std::bit_cast<float>(bits)}) {
      if (x > 88.7f) continue;
      const double exact = std::exp(static_cast<double>(x));
      const double unit = std::max(std::ldexp(1.0, std::ilogb(exact) - 23), 0x1p-149);
      worst = std::max(worst, std::abs(static_cast<double>(exp_avx2(x)) - exact) / unit);
    }
  }
  EXPECT_LE(worst, 2);
  RecordProperty("worst_units", std::to_string(worst));
}
#endif

}  // namespace
}  // namespace refrain::ops
