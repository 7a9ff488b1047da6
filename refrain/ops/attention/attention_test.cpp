// Attention: every kernel against the reference, the same bits however the batch is cut, hostile values,
// AVX2's exp.
#include "refrain/ops/attention/attention.h"

#include <tuple>

#include "refrain/ops/attention/test_attention.h"
#if defined(__x86_64__)
#include "refrain/ops/simd_avx2.h"
#endif

namespace refrain::ops {
namespace {

using namespace harness;
using attention_test::Data, attention_test::Heads, attention_test::Positions, attention_test::tolerance;
using attention_test::kSlotLengths, attention_test::kWindows, attention_test::chunk_positions;
using attention_test::kTypes, attention_test::kernel_like;

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
        // By turns: f32 with blocks of one row and of eight, f16 likewise.
        const DType type = (range == 1) == (capacity == 13) ? DType::f32 : DType::f16;
        Random random(21);
        const Data base(TestStep({65, 300, 1}, edge_positions(), capacity, random), heads, range, 0, type);
        base.poison_unused();
        const Data expected = base;
        expected.call().reference(13);
        std::vector<double> bounds;
        for (size_t i = 0; i < size_t{13} * heads.heads; ++i) {
          bounds.push_back(tolerance(base, i / heads.heads, i % heads.heads));
        }
        for (const backend::Kernel* kernel : base.call().kernels()) {
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
        for (const backend::Kernel* kernel : base.call().kernels()) {
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

TEST(Attention, ChunksJoinToAllThatARowSees) {
  for (const uint32_t window : kWindows) {
    for (const uint32_t capacity : {13u, 40u}) {
      Random random(21);
      const Heads heads{6, 2, 12};
      const Data base(TestStep(kSlotLengths, chunk_positions(), capacity, random), heads, 3, window);
      base.poison_unused();
      const Data expected = base;
      expected.call().reference(13);
      std::vector<double> bounds;
      for (size_t i = 0; i < size_t{13} * heads.heads; ++i)
        bounds.push_back(tolerance(base, i / heads.heads, i % heads.heads));
      for (const backend::Kernel* kernel : base.call().kernels()) {
        const Data data = base;
        data.call().run(*kernel, 13);
        const double worst =
            excess(data.output, expected.output, [&](size_t i) { return bounds[i / heads.head_dim]; });
        EXPECT_LE(worst, 0) << kernel->name << " window " << window;
      }
    }
  }
}

// Caps that hardly any score reaches, that many do and that all but the smallest exceed.
TEST(Attention, ACapBendsScores) {
  for (const Heads& heads : {Heads{4, 2, 16}, Heads{6, 2, 40}, Heads{5, 1, 64}, Heads{16, 8, 128}}) {
    for (const float cap : {50.0f, 2.0f, 1e-3f}) {
      for (const auto& [window, capacity, type] : {std::tuple{0u, 13u, DType::f16},
                                                   {0u, 40u, DType::f32},
                                                   {70u, 13u, DType::f32},
                                                   {70u, 40u, DType::f16}}) {
        Random random(21);
        const Data base(TestStep({65, 300, 1}, edge_positions(), capacity, random), heads, 6, window, type,
                        cap);
        base.poison_unused();
        const Data expected = base;
        expected.call().reference(13);
        Data uncapped = base;
        uncapped.softcap = 0;
        uncapped.call().reference(13);
        EXPECT_FALSE(same_bits(uncapped.output, expected.output)) << "it shows";
        std::vector<double> bounds;
        for (size_t i = 0; i < size_t{13} * heads.heads; ++i)
          bounds.push_back(tolerance(base, i / heads.heads, i % heads.heads));
        for (const backend::Kernel* kernel : base.call().kernels()) {
          const Data data = base;
          data.call().run(*kernel, 13);
          const double worst =
              excess(data.output, expected.output, [&](size_t i) { return bounds[i / heads.head_dim]; });
          EXPECT_LE(worst, 0) << kernel->name << " cap " << cap << " window " << window;
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
    for (const backend::Kernel* kernel : data.call().kernels()) {
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
  for (const backend::Kernel* kernel : wide.call().kernels()) {
    none.call().run(*kernel, 2);
    wide.call().run(*kernel, 2);
    EXPECT_TRUE(same_bits(none.output, wide.output)) << kernel->name;
  }
}

TEST(Attention, BitsDoNotDependOnWalksOrLiveRows) {
  for (const auto& [heads, type] :
       {std::pair{Heads{4, 2, 16}, DType::f32}, {{6, 2, 40}, DType::f32}, {{6, 2, 12}, DType::f16}}) {
    Random random(22);
    Positions positions;
    for (uint32_t p = 30; p < 70; ++p) positions.emplace_back(p % 3 == 0 ? 1u : 0u, p);
    const Data base(TestStep({70, 70}, positions, 40, random), heads, 1, 0, type);
    for (const backend::Kernel* kernel : base.call().kernels()) {
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
  struct Case {
    Heads heads;
    uint32_t window, first_position;
    DType type = DType::f32;
    float softcap = 0;
  };
  for (const auto& [heads, window, first_position, type, softcap] :
       {Case{{4, 2, 16}, 0, 0}, Case{{6, 2, 40}, 50, 0}, Case{{3, 1, 64}, 0, 0}, Case{{3, 1, 64}, 64, 0},
        Case{{4, 2, 16}, 0, 450}, Case{{6, 2, 40}, 50, 200}, Case{{3, 1, 64}, 300, 450},
        Case{{4, 2, 16}, 0, 450, DType::f16}, Case{{6, 2, 40}, 50, 200, DType::f16},
        Case{{6, 2, 40}, 50, 200, DType::f32, 0.5f}}) {
    Random random(23);
    Positions positions;
    for (uint32_t p = 0; p < 135; ++p) positions.emplace_back(0, first_position + p);
    for (uint32_t p = 0; p < 20; ++p) positions.emplace_back(1, p);
    const Data whole(TestStep({first_position + 135, 20}, positions, 155, random), heads, 1, window, type,
                     softcap);
    for (const backend::Kernel* kernel : whole.call().kernels()) {
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
  for (const backend::Kernel* kernel : kernels_of(attention_schema)) {
    Array<float> first(0);
    for (const uint64_t seed : {1u, 2u, 3u}) {
      Random random(seed);
      Data data(TestStep({40, 200}, {{1, 199}, {1, 64}, {0, 39}}, 3, random), {4, 2, 24});
      if (!data.call().accepted_by(*kernel)) data.type = DType::f16;
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

// Cached values of every magnitude that f16 has, in every block of rows, dimensions and window.
TEST(Attention, ACacheInF16HasTheBitsOfItsValuesInF32) {
  size_t compared = 0;
  for (const Heads& heads : kHeads) {
    for (const uint32_t window : {0u, 70u}) {
      for (const uint32_t capacity : {13u, 40u}) {
        Random random(21);
        Data halves(TestStep({65, 300, 1}, edge_positions(), capacity, random), heads, 1, window, DType::f16);
        for (size_t i = 0; i < halves.cache.size(); i += 5) {
          // Keys, and without a window values, below 2, so that more than one position counts.
          const bool any = window != 0 && i >= halves.cache.size() / 2;
          const auto bits = static_cast<uint16_t>(random.next() & (any ? 0xFFFF : 0xBFFF));
          halves.cache[i] = (bits & 0x7C00) == 0x7C00 ? 0.0f : f16{bits}.to_float();
        }
        halves.poison_unused();
        Data floats = halves;
        floats.type = DType::f32;
        for (const backend::Kernel* kernel : halves.call().kernels()) {
          halves.call().run(*kernel, 13);
          floats.call().run(kernel_like(*kernel, floats.call()), 13);
          EXPECT_TRUE(same_bits(halves.output, floats.output))
              << kernel->name << ' ' << heads.heads << ' ' << heads.kv_heads << ' ' << heads.head_dim;
          for (const float value : std::span(halves.output.data(), 13 * halves.row_elements()))
            ASSERT_TRUE(std::isfinite(value)) << kernel->name;
          ++compared;
        }
      }
    }
  }
  EXPECT_GE(compared, std::size(kHeads) * 4);
}

TEST(Attention, HostileValuesGiveZerosAndRaiseStatus) {
  const auto run = [](const auto& spoil, uint32_t word, uint32_t bits) {
    for (const auto& [capacity, type] : {std::pair{2u, DType::f32}, {32u, DType::f32}, {2u, DType::f16}}) {
      Random random(4);
      const Data base(TestStep({130, 64}, {{0, 129}, {1, 5}}, capacity, random), {4, 2, 16}, 1, 0, type);
      for (const backend::Kernel* kernel : base.call().kernels()) {
        Data data = base;
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
  Random random(4);
  const Data base(TestStep({130}, {{0, 129}, {0, 128}}, 2, random), {4, 2, 16});
  for (const backend::Kernel* kernel : base.call().kernels()) {
    const Data clean = base, dirty = base;
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
  Call type = data.call();
  type.info(3).dtype = DType::i8;
  EXPECT_EQ(type.check_error(), "[attention] cache: expected f32 or f16, got i8");
  type.info(3).dtype = DType::f16;
  EXPECT_EQ(type.check_error(), "[attention] cache: expected f32, got f16") << "the constants say f32";
  for (const auto& [cap, shown] : {std::pair{-1.0f, "-1"}, {INFINITY, "inf"}, {NAN, "nan"}}) {
    Data capped = data;
    capped.softcap = cap;
    EXPECT_EQ(
        capped.call().check_error(),
        std::string("[attention] softcap: expected a finite number above 0, or 0 for none, got ") + shown);
  }
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
