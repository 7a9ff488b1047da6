// Sampling: Philox's known answers, every kernel against the reference, edge cases by hand, the distribution.
#include "refrain/ops/sample/sample.h"

#include <map>

#include "refrain/ops/sample/draw.h"
#include "refrain/ops/sample/philox.h"
#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

using namespace harness;
using Words = std::array<uint32_t, 4>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// The known answers that come with Random123.
static_assert(philox4x32_10({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
static_assert(philox4x32_10({0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, {0xFFFFFFFF, 0xFFFFFFFF}) ==
              Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
static_assert(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
              Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

std::vector<const backend::Kernel*> kernels() { return kernels_of(sample_schema); }

/// `outputs` rows of logits, one slot for each, row o of the step block for output o.
struct Data {
  Data(uint32_t outputs, uint32_t vocabulary_size)
      : vocabulary(vocabulary_size),
        logits(size_t{outputs} * vocabulary_size),
        index(outputs),
        rows(outputs),
        slots(outputs),
        masks(2 * size_t{words(vocabulary_size)}, ~0u),
        status(outputs + 1) {
    for (uint32_t o = 0; o < outputs; ++o) {
      index[o] = o;
      rows[o] = {1, o, o, 0xBEEF};
    }
  }
  Call call() const {
    const auto outputs = static_cast<uint32_t>(index.size());
    const auto row_count = static_cast<uint32_t>(rows.size());
    const auto slot_count = static_cast<uint32_t>(slots.size());
    Call result(sample_schema);
    result.tensor({outputs, vocabulary}, logits).tensor({outputs}, index);
    result.tensor(DType::u32, {row_count, 4}, rows.data());
    result.tensor(DType::u32, {slot_count, 16}, slots.data());
    if (masked) {
      result.tensor({2, words(vocabulary)}, masks);
    } else {
      result.none();
    }
    result.tensor({slot_count + 1}, status);
    return result;
  }

  static uint32_t words(uint32_t ids) { return (ids + 31) / 32; }
  /// All slots draw by the second mask, or by none.
  void use_mask(bool use) {
    masked = use;
    for (Slot& slot : slots) slot.mask = use ? 1 : kNoTable;
  }

  uint32_t vocabulary;
  bool masked = false;
  Array<float> logits;
  Array<uint32_t> index;
  Array<StepRow> rows;
  Array<Slot> slots;
  Array<uint32_t> masks;  // two
  Array<uint32_t> status;
};

Slot settings(float temperature, uint32_t top_k = 0, float top_p = 1, uint64_t seed = 0) {
  Slot slot;
  slot.temperature = temperature;
  slot.top_k = top_k;
  slot.top_p = top_p;
  slot.seed = seed;
  return slot;
}

/// What all kernels draw from these logits (they must agree), at several positions.
std::vector<uint32_t> draws(const std::vector<float>& logits, const Slot& slot, uint32_t count = 64,
                            const std::vector<uint32_t>& allowed = {}) {
  Data data(count, static_cast<uint32_t>(logits.size()));
  for (uint32_t o = 0; o < count; ++o) {
    std::copy(logits.begin(), logits.end(), data.logits.data() + size_t{o} * logits.size());
    data.slots[o] = slot;
  }
  if (!allowed.empty()) {
    data.use_mask(true);
    std::copy(allowed.begin(), allowed.end(), data.masks.end() - Data::words(data.vocabulary));
  }
  std::vector<uint32_t> expected;
  for (const backend::Kernel* kernel : kernels()) {
    for (StepRow& row : data.rows) row.sampled = 0xBEEF;
    data.call().run(*kernel, count);
    std::vector<uint32_t> sampled;
    for (const StepRow& row : data.rows) sampled.push_back(row.sampled);
    if (expected.empty()) expected = sampled;
    EXPECT_EQ(sampled, expected) << kernel->name;
  }
  return expected;
}

void expect_always(uint32_t token, const std::vector<float>& logits, const Slot& slot,
                   const std::vector<uint32_t>& allowed = {}) {
  for (const uint32_t drawn : draws(logits, slot, 64, allowed)) ASSERT_EQ(drawn, token);
}

std::map<uint32_t, int> histogram(const std::vector<uint32_t>& tokens) {
  std::map<uint32_t, int> counts;
  for (const uint32_t token : tokens) ++counts[token];
  return counts;
}

TEST(Sample, EveryKernelDrawsWhatTheReferenceDraws) {
  Random random(31);
  for (const uint32_t vocabulary : {1u, 2u, 31u, 32u, 33u, 100u, 1000u, 5003u}) {
    constexpr uint32_t kOutputs = 96;
    Data data(kOutputs, vocabulary);
    for (const uint32_t levels : {4u, 1u << 22}) {  // few levels: many ties
      for (float& logit : data.logits) {
        logit = 12 * static_cast<float>(random.below(levels)) / static_cast<float>(levels);
        if (random.below(20) == 0) logit = random.below(2) == 0 ? kNan : -kInf;
      }
      const float temperatures[] = {0, 1, 0.7f, 3, 1e-30f, 1e30f};
      const uint32_t ks[] = {0, 1, 2, 40, vocabulary - 1, vocabulary, 0xFFFFFFFF};
      const float ps[] = {1, 0, 0.3f, 0.9f, 0.999f, 2, -1, kNan};
      for (uint32_t o = 0; o < kOutputs; ++o) {
        data.rows[o].position = random.next();
        data.slots[o] = settings(temperatures[random.below(6)], ks[random.below(7)], ps[random.below(8)],
                                 uint64_t{random.next()} << 32 | random.next());
      }
      for (uint32_t& word : data.masks) word = random.next() | random.next();
      for (const bool masked : {false, true}) {
        data.use_mask(masked);
        Data reference = data;
        reference.call().reference(kOutputs);
        for (const backend::Kernel* kernel : kernels()) {
          for (const Walk& walk : kWalks) {
            Data copy = data;
            copy.call().run(*kernel, kOutputs, walk);
            for (uint32_t o = 0; o < kOutputs; ++o) {
              ASSERT_EQ(copy.rows[o].sampled, reference.rows[o].sampled)
                  << kernel->name << " V " << vocabulary << " T " << data.slots[o].temperature << " k "
                  << data.slots[o].top_k << " p " << data.slots[o].top_p;
            }
          }
          Data some = data;
          some.call().run(*kernel, 5);
          for (uint32_t o = 5; o < kOutputs; ++o) EXPECT_EQ(some.rows[o].sampled, 0xBEEFu);
        }
      }
    }
  }
}

TEST(Sample, ALargeVocabularyDrawsWhatTheReferenceDraws) {
  Random random(32);
  Data data(6, 151936);
  random.fill(data.logits, -8, 8);
  data.slots[0] = settings(1, 0, 1, 5);
  data.slots[1] = settings(1, 50, 1, 6);
  data.slots[2] = settings(5, 0, 0.95f, 7);
  data.slots[3] = settings(0.8f, 40, 0.95f, 8);
  data.slots[4] = settings(0);
  data.slots[5] = settings(100, 100000, 0.5f, 9);
  Data reference = data;
  reference.call().reference(6);
  for (const backend::Kernel* kernel : kernels()) {
    Data copy = data;
    copy.call().run(*kernel, 6);
    for (size_t o = 0; o < 6; ++o) EXPECT_EQ(copy.rows[o].sampled, reference.rows[o].sampled) << o;
  }
}

TEST(Sample, ZeroTemperatureTakesTheGreatestAndTheLowerIdOfEquals) {
  for (const float temperature : {0.0f, -0.0f, -1.0f, kNan}) {
    expect_always(1, {1, 3, 2, 3}, settings(temperature));
    expect_always(3, {kNan, -5, kNan, 4, kNan}, settings(temperature, 2, 0.5f));
    expect_always(1, {kNan, -kInf, -kInf}, settings(temperature));
    expect_always(0, {kNan, kNan}, settings(temperature));
  }
}

TEST(Sample, TopKOfOneAndTopPOfZeroTakeTheGreatest) {
  expect_always(1, {1, 3, 2, 3}, settings(5, 1));
  expect_always(1, {1, 3, 2, 3}, settings(5, 0, 0));
  expect_always(1, {1, 3, 2, 3}, settings(5, 0, -kInf));
  expect_always(1, {1, 3, 2, 3}, settings(5, 3, 0));
}

TEST(Sample, TopKKeepsTheLowerIdsOfEquals) {
  const auto counts = histogram(draws({0, 1, 1, 1, 1, 0}, settings(1, 2), 500));
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_GT(counts.at(1), 180);
  EXPECT_GT(counts.at(2), 180);
}

TEST(Sample, TopPKeepsTheShortestBeginning) {
  // Shares 0.5, 0.25, 0.125, 0.125: exact in binary, as are the bounds.
  const std::vector<float> logits = {0, std::log(2.0f), 0, std::log(4.0f)};
  EXPECT_EQ(histogram(draws(logits, settings(1, 0, 0.49f), 300)).size(), 1u);
  EXPECT_EQ(histogram(draws(logits, settings(1, 0, 0.51f), 300)).size(), 2u);
  EXPECT_EQ(histogram(draws(logits, settings(1, 0, 0.74f), 300)).size(), 2u);
  const auto three = histogram(draws(logits, settings(1, 0, 0.80f), 300));
  EXPECT_EQ(three.size(), 3u);
  EXPECT_EQ(three.count(2), 0u);  // the higher id of equals goes first
  EXPECT_EQ(histogram(draws(logits, settings(1, 0, 1), 300)).size(), 4u);
}

// A bound that the running share reaches exactly is reached: no further id is kept. All figures are exact.
TEST(Sample, TopPIsReachedByAnEqualShare) {
  expect_always(0, {1, 1}, settings(1, 0, 0.5f));
  expect_always(0, {1, 1, 1}, settings(1, 2, 0.5f));
  EXPECT_EQ(histogram(draws({2, 2, 2, 2}, settings(1, 0, 0.5f), 300)).size(), 2u);
  EXPECT_EQ(histogram(draws({2, 2, 2, 2}, settings(1, 0, 0.75f), 300)).size(), 3u);
  EXPECT_EQ(histogram(draws({2, 2, 2, 2, 2}, settings(1, 4, 0.75f), 300)).size(), 3u);
  const float above = std::nextafter(0.5f, 1.0f);
  EXPECT_EQ(histogram(draws({1, 1}, settings(1, 0, above), 300)).size(), 2u);
  EXPECT_EQ(histogram(draws({1, 1, 1}, settings(1, 2, above), 300)).size(), 2u);
}

// The draw u takes the first id whose running sum exceeds u times the total: of equals, a sum that it meets exactly
// is that of the id before.
TEST(Sample, ASumThatTheDrawMeetsBelongsToTheIdBefore) {
  constexpr uint32_t kEqual = 1u << 14;
  const auto word = [](uint32_t position) { return philox4x32_10({position, 0, 0, 0}, {0, 0})[0]; };
  std::vector<uint32_t> positions;
  for (uint32_t position = 0; positions.size() < 4; ++position) {
    if ((word(position) & 0x3FFFFu) == 0) positions.push_back(position);  // 2^14 u is a whole number
  }
  for (const Slot& slot : {settings(1), settings(1, kEqual), settings(1, 0, 0.5f)}) {
    const uint32_t vocabulary = slot.top_k != 0 ? kEqual + 1 : slot.top_p < 1 ? 2 * kEqual : kEqual;
    Data data(static_cast<uint32_t>(positions.size()), vocabulary);
    for (size_t o = 0; o < positions.size(); ++o) {
      data.rows[o].position = positions[o];
      data.slots[o] = slot;
    }
    Data reference = data;
    reference.call().reference(static_cast<uint32_t>(positions.size()));
    for (const backend::Kernel* kernel : kernels()) {
      data.call().run(*kernel, static_cast<uint32_t>(positions.size()));
      for (size_t o = 0; o < positions.size(); ++o) {
        EXPECT_EQ(data.rows[o].sampled, word(positions[o]) >> 18) << kernel->name;
        EXPECT_EQ(reference.rows[o].sampled, word(positions[o]) >> 18);
      }
    }
  }
}

TEST(Sample, OffMeansOff) {
  Random random(33);
  std::vector<float> logits(300);
  for (float& logit : logits) logit = random.uniform(-3, 3);
  const auto plain = draws(logits, settings(1));
  EXPECT_EQ(draws(logits, settings(1, 300)), plain);
  EXPECT_EQ(draws(logits, settings(1, 0xFFFFFFFF)), plain);
  EXPECT_EQ(draws(logits, settings(1, 0, 1.5f)), plain);
  EXPECT_EQ(draws(logits, settings(1, 0, kNan)), plain);
}

TEST(Sample, ExtremeTemperatures) {
  const std::vector<float> logits = {1, 3, 2, -3.4e38f, 3.0000002f};
  expect_always(4, logits, settings(1e-45f));
  expect_always(4, logits, settings(1e-30f, 3, 0.9f));
  for (const float temperature : {3.4e38f, kInf}) {
    const auto counts = histogram(draws({1, 3, -kInf, 2, kNan, 0}, settings(temperature), 800));
    EXPECT_EQ(counts.size(), 4u);  // all but minus infinity and NaN, alike
    for (const auto& [token, count] : counts) EXPECT_NEAR(count, 200, 60) << token;
  }
}

TEST(Sample, InfiniteAndMissingLogits) {
  for (const Slot& slot : {settings(1), settings(1, 2), settings(1, 0, 0.5f)}) {
    expect_always(2, {1, kNan, kInf, kInf}, slot);
    expect_always(1, {kNan, -kInf, -kInf, kNan}, slot);
    expect_always(0, {kNan, kNan, kNan}, slot);
    expect_always(2, {kNan, -kInf, 5, -kInf}, slot);
    expect_always(0, {-kInf}, slot);
  }
}

TEST(Sample, ALogitThatIsNotFiniteIsSaidOfItsSlot) {
  const float values[] = {1, kInf, -kInf, kNan, 3.4e38f};
  for (const backend::Kernel* kernel : kernels()) {
    Data data(5, 3);
    for (size_t o = 0; o < 5; ++o) std::fill_n(data.logits.data() + 3 * o, 3, values[o]);
    Data reference = data;
    data.call().run(*kernel, 5);
    reference.call().reference(5);
    for (size_t o = 0; o < 6; ++o)
      EXPECT_EQ(data.status[o], o >= 1 && o <= 3 ? uint32_t{kNotFinite} : 0u) << kernel->name << " " << o;
    EXPECT_TRUE(same_bits(data.status, reference.status));
  }
}

TEST(Sample, OnlyAdmittedIdsAreDrawn) {
  std::vector<float> logits(70, 5.0f);
  for (const Slot& slot : {settings(0), settings(2), settings(2, 60), settings(2, 0, 0.9f)}) {
    for (const uint32_t token : draws(logits, slot, 200, {0, 0x00F00000, 0x30})) {
      EXPECT_TRUE((token >= 52 && token < 56) || token == 68 || token == 69) << token;
    }
    expect_always(69, logits, slot, {0, 0, 0x20});
    expect_always(0, logits, slot, {0, 0, 0});
    expect_always(0, logits, slot, {0, 0, ~0u << 6});  // bits past the vocabulary admit nothing
  }
  std::fill(logits.begin(), logits.end(), kNan);
  expect_always(52, logits, settings(1), {0, 0x00F00000, 0x30});
}

TEST(Sample, SeedAndPositionDecide) {
  std::vector<float> logits(1000, 0.0f);
  const auto a = draws(logits, settings(1, 0, 1, 7));
  EXPECT_EQ(a, draws(logits, settings(1, 0, 1, 7)));
  EXPECT_NE(a, draws(logits, settings(1, 0, 1, 8)));
  EXPECT_NE(a, draws(logits, settings(1, 0, 1, uint64_t{7} | uint64_t{1} << 32)));
  // Equal logits: the token is the word's share of the vocabulary.
  for (uint32_t position = 0; position < a.size(); ++position) {
    const double uniform = philox4x32_10({position, 0, 0, 0}, {7, 0})[0] * 0x1p-32;
    EXPECT_EQ(a[position], static_cast<uint32_t>(uniform * 1000));
  }
}

TEST(Sample, DistributionPassesChiSquare) {
  const std::vector<float> logits = {0.3f, -1, 2, 1.5f, 0, -0.5f, 1, 0.7f, -2, 0.1f};
  constexpr uint32_t kDraws = 100000;
  for (const auto& [temperature, top_k] : {std::pair{1.0f, 0u}, {0.5f, 0u}, {2.0f, 6u}}) {
    const auto counts = histogram(draws(logits, settings(temperature, top_k, 1, 42), kDraws));
    std::vector<std::pair<double, uint32_t>> shares;
    for (uint32_t i = 0; i < logits.size(); ++i) {
      shares.emplace_back(std::exp(static_cast<double>(logits[i]) / static_cast<double>(temperature)), i);
    }
    std::sort(shares.rbegin(), shares.rend());
    if (top_k != 0) shares.resize(top_k);
    double total = 0, chi_square = 0;
    for (const auto& [share, token] : shares) total += share;
    for (const auto& [share, token] : shares) {
      const double expected = kDraws * share / total;
      const double difference = (counts.count(token) != 0 ? counts.at(token) : 0) - expected;
      chi_square += difference * difference / expected;
    }
    EXPECT_LE(counts.size(), shares.size());
    EXPECT_LT(chi_square, 33.7);  // 9 degrees of freedom: exceeded once in 10,000 seeds
  }
}

TEST(Sample, ExpIsWithinTwoUnitsInTheLastPlace) {
  Random random(34);
  double worst = 0;
  for (int i = 0; i < 2000000; ++i) {
    const double u = random.next() * 0x1p-32 + random.next() * 0x1p-64;
    const double x = -std::pow(u, 3.0) * (i % 2 == 0 ? 1.0 : 700.0);
    const long double exact = std::exp(static_cast<long double>(x));
    const double unit = std::ldexp(1.0, std::ilogb(static_cast<double>(exact)) - 52);
    const long double error = static_cast<long double>(sampling::exp_of_negative(x)) - exact;
    worst = std::max(worst, static_cast<double>(std::abs(error)) / unit);
  }
  EXPECT_LE(worst, 2);
  EXPECT_EQ(sampling::exp_of_negative(0), 1);
  EXPECT_EQ(sampling::exp_of_negative(-701), 0);
  EXPECT_EQ(sampling::exp_of_negative(-INFINITY), 0);
}

TEST(Sample, HostileIndicesSlotsAndMasksRaiseStatus) {
  for (const backend::Kernel* kernel : kernels()) {
    Data data(7, 90);  // three words a mask, of which there are two
    data.use_mask(true);
    data.index[0] = 7;
    data.index[1] = 0xFFFFFFFE;
    data.rows[2].slot = 7;
    data.rows[3].position = 0xFFFFFFFF;
    data.logits[3 * 90 + 17] = 1;
    data.slots[4].mask = 2;
    data.index[5] = kIdle;
    data.rows[6].slot = kIdle;
    Data reference = data;
    data.call().run(*kernel, 1);
    reference.call().reference(1);
    for (const Data* each : {&data, &reference}) EXPECT_EQ(each->status[7], uint32_t{kOutputOutOfRange});
    data.call().run(*kernel, 7);
    reference.call().reference(7);
    EXPECT_EQ(data.status[7], kOutputOutOfRange | kSlotOutOfRange);
    EXPECT_EQ(data.status[4], uint32_t{kTableOutOfRange});
    for (const size_t fine : {0u, 1u, 2u, 3u, 5u, 6u}) EXPECT_EQ(data.status[fine], 0u) << fine;
    EXPECT_TRUE(same_bits(data.status, reference.status));
    EXPECT_TRUE(same_bits(data.rows, reference.rows));
    EXPECT_EQ(data.rows[0].sampled, 0xBEEFu);
    EXPECT_EQ(data.rows[2].sampled, kNoToken);
    EXPECT_EQ(data.rows[3].sampled, 17u);
    EXPECT_EQ(data.rows[4].sampled, kNoToken);
    EXPECT_EQ(data.rows[5].sampled, 0xBEEFu);
    EXPECT_EQ(data.rows[6].sampled, kNoToken);
  }
}

TEST(Sample, CheckNamesWhatIsWrong) {
  Data data(4, 50);
  data.masked = true;
  EXPECT_EQ(data.call().check_error(), "");
  for (const size_t index : {0u, 1u, 2u, 3u, 4u, 5u}) {
    Call shape = data.call();
    shape.info(index).shape = {9, 9, 9};
    EXPECT_NE(shape.check_error(), "") << index;
    Call dtype = data.call();
    dtype.info(index).dtype = DType::u8;
    EXPECT_NE(dtype.check_error(), "") << index;
  }
  Call masks = data.call();
  masks.info(4).shape = {2, 3};
  EXPECT_EQ(masks.check_error(), "[sample] masks: expected [2, 2], got [2, 3]");
}

}  // namespace
}  // namespace refrain::ops
