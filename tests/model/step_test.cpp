// The step: decode steps that run ahead of the host and stop by themselves, shared prefixes, drafts taken back, many
// slots, values out of range.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>
#include <optional>

#include "tests/model/tales.h"

namespace refrain::test {
namespace {

using model::ModelRunner;
using model::RunnerOptions;
using model::Slot;
using model::StepRequest;
using model::StepResult;

constexpr uint32_t kStatusBits = 0xFFFF;

RunnerOptions options_for(uint32_t slots, uint32_t context = 256, std::optional<DType> cache = std::nullopt) {
  RunnerOptions options;
  options.cache = cache;
  options.context_tokens = context;
  options.slots = slots;
  options.capacities = {1, 2, 64};
  options.stop_sets = 2;
  return options;
}

Slot sampled_slot(uint64_t seed) {
  Slot slot;
  slot.temperature = 1.5f;  // so that hardly a token comes twice
  slot.seed = seed;
  return slot;
}

std::vector<float> copy(std::span<const float> values) { return {values.begin(), values.end()}; }

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// What two slots draw: their results in order.
struct Drawn {
  std::vector<StepResult> of[2];

  void take(ModelRunner& runner) {
    for (StepResult result; runner.next(result);) of[result.slot].push_back(result);
  }
  std::vector<uint32_t> tokens(size_t slot) const {
    std::vector<uint32_t> list;
    for (const StepResult& result : of[slot]) list.push_back(result.token);
    return list;
  }
};

constexpr size_t kPrompt[2] = {20, 61};

/// Prompts into both slots and `steps` decode steps, `at_once` of them submitted without a look at any result.
Drawn run_ahead(ModelRunner& runner, const Slot (&slots)[2], uint32_t steps, uint32_t at_once) {
  Drawn drawn;
  for (uint32_t s = 0; s < 2; ++s) {
    runner.set_slot(s, slots[s]);
    submit_tokens(runner, s, some_ids(kPrompt[s], s + 1));
  }
  // The first ones directly behind the prompts, whose tokens the host has not seen.
  for (uint32_t done = 0; done < steps; done += at_once) {
    for (uint32_t i = 0; i < at_once; ++i) {
      if (done + i == 0) {
        submit_ahead(runner, 2);
      } else {
        runner.submit_next();
        EXPECT_EQ(runner.sent_bytes(), 0u);
      }
    }
    runner.wait();
    drawn.take(runner);
  }
  return drawn;
}

/// The same with every token seen by the host and sent by it, one step at a time, one slot at a time.
Drawn run_by_hand(ModelRunner& runner, const Slot (&slots)[2], uint32_t steps) {
  Drawn drawn;
  for (uint32_t s = 0; s < 2; ++s) {
    runner.set_slot(s, slots[s]);
    submit_tokens(runner, s, some_ids(kPrompt[s], s + 1));
    runner.wait();
    drawn.take(runner);
    for (uint32_t i = 0; i < steps; ++i) {
      submit_tokens(runner, s, {&drawn.of[s].back().token, 1});
      runner.wait();
      drawn.take(runner);
    }
  }
  return drawn;
}

/// The first index from `from` on whose token has not come before.
size_t first_new(const std::vector<uint32_t>& tokens, size_t from) {
  for (size_t i = from; i < tokens.size(); ++i) {
    if (std::find(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(i), tokens[i]) ==
        tokens.begin() + static_cast<ptrdiff_t>(i))
      return i;
  }
  ADD_FAILURE() << "no new token";
  return from;
}

class RunningAhead : public ::testing::TestWithParam<uint32_t> {
 protected:
  static constexpr uint32_t kSteps = 48;

  RunningAhead() : model_(open_tales(2)), runner_(model_, options_for(2)) {
    expected_ = run_by_hand(runner_, slots_, kSteps);
  }
  /// Results of `slot` are the first `count` of the expected ones, and the last of them stopped for `bits`.
  void expect_stopped(const Drawn& drawn, size_t slot, size_t count, uint32_t bits) const {
    std::vector<uint32_t> tokens = expected_.tokens(slot);
    ASSERT_LT(count, tokens.size());
    tokens.resize(count);
    EXPECT_EQ(drawn.tokens(slot), tokens) << "slot " << slot;
    for (size_t i = 0; i < drawn.of[slot].size(); ++i)
      EXPECT_EQ(drawn.of[slot][i].bits, i + 1 == count ? bits : 0u) << "slot " << slot << " result " << i;
  }

  model::Model model_;
  ModelRunner runner_;
  Slot slots_[2] = {sampled_slot(3), {}};  // the second: the greatest logit
  Drawn expected_;
};

TEST_P(RunningAhead, GivesTheTokensOfOneByOne) {
  const Drawn drawn = run_ahead(runner_, slots_, kSteps, GetParam());
  for (const size_t s : {0u, 1u}) {
    EXPECT_EQ(drawn.tokens(s), expected_.tokens(s)) << "slot " << s;
    for (size_t i = 0; i < drawn.of[s].size(); ++i) EXPECT_EQ(drawn.of[s][i].length, kPrompt[s] + i);
  }
}

TEST_P(RunningAhead, StopsAtTheIdsOfEachSlot) {
  slots_[1] = sampled_slot(4);
  expected_ = run_by_hand(runner_, slots_, kSteps);
  size_t ends[2];
  for (uint32_t s = 0; s < 2; ++s) {
    const std::vector<uint32_t> tokens = expected_.tokens(s);
    ends[s] = first_new(tokens, s == 0 ? 7 : 17);
    const uint32_t ids[] = {0xFFFFFF, tokens[ends[s]]};
    runner_.set_stop_set(s, ids);
    slots_[s].stop_set = s;
  }
  const Drawn drawn = run_ahead(runner_, slots_, kSteps, GetParam());
  for (uint32_t s = 0; s < 2; ++s) expect_stopped(drawn, s, ends[s] + 1, ops::kStopId);
}

TEST_P(RunningAhead, StopsAtTheLimitOfEachSlot) {
  slots_[0].limit = kPrompt[0] + 5;
  slots_[1].limit = kPrompt[1] + 21;
  const Drawn drawn = run_ahead(runner_, slots_, kSteps, GetParam());
  expect_stopped(drawn, 0, 6, ops::kStopLimit);
  expect_stopped(drawn, 1, 22, ops::kStopLimit);
}

TEST_P(RunningAhead, StopsAtTheEndOfTheContext) {
  constexpr uint32_t kContext = 66;  // in the middle of a page
  ModelRunner runner(model_, options_for(2, kContext));
  const Drawn drawn = run_ahead(runner, slots_, 64, GetParam());
  expect_stopped(drawn, 0, kContext - kPrompt[0] + 1, ops::kStopLimit);
  expect_stopped(drawn, 1, kContext - kPrompt[1] + 1, ops::kStopLimit);
}

INSTANTIATE_TEST_SUITE_P(AtOnce, RunningAhead, ::testing::Values(1u, 4u, 16u));

TEST(Step, GenerationIsTheSameHoweverFarTheDeviceIsAhead) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, options_for(1));
  std::vector<uint32_t> expected, stopped;
  for (const uint32_t ahead : {1u, 2u, 5u, 100u}) {
    std::vector<uint32_t> tokens;
    model::GenerateOptions options;
    options.sampling = {.temperature = 1.5f, .seed = 9};
    options.max_tokens = 40;
    options.steps_in_flight = ahead;
    options.on_token = [&](uint32_t id) {
      tokens.push_back(id);
      return true;
    };
    EXPECT_EQ(model::generate(runner, some_ids(30), options).reason, model::StopReason::max_tokens);
    EXPECT_EQ(tokens.size(), 40u);
    if (expected.empty()) expected = tokens;
    EXPECT_EQ(tokens, expected) << ahead;

    const size_t end = first_new(expected, 10);
    options.stop_ids = {expected[end]};
    tokens.clear();
    EXPECT_EQ(model::generate(runner, some_ids(30), options).reason, model::StopReason::stop_id);
    EXPECT_EQ(tokens,
              std::vector<uint32_t>(expected.begin(), expected.begin() + static_cast<ptrdiff_t>(end)));

    options.stop_ids.clear();
    options.max_tokens = 1000;
    tokens.clear();
    EXPECT_EQ(model::generate(runner, some_ids(240), options).reason, model::StopReason::context);
    EXPECT_EQ(tokens.size(), 256u - 240u + 1u);
  }
}

class StepOf : public EachCache {};
INSTANTIATE_TEST_SUITE_P(Cache, StepOf, ::testing::Values(DType::f32, DType::f16), cache_name);

TEST_P(StepOf, SlotsThatShareAPrefixGiveTheBitsOfTheirOwn) {
  constexpr uint32_t kShared = 128;  // two pages
  const model::Model model = open_tales(2);
  std::vector<uint32_t> ids[2] = {some_ids(kShared + 9), some_ids(kShared + 9)};
  for (size_t i = kShared; i < ids[1].size(); ++i) ids[1][i] += 7;
  RunnerOptions options = options_for(2, 256, GetParam());
  options.outputs = 9;
  options.capacities = {2, 9, 128};

  std::vector<float> expected[2];
  Drawn expected_drawn;
  ModelRunner own(model, options);
  for (uint32_t s = 0; s < 2; ++s) {
    submit_tokens(own, s, std::span(ids[s]).first(kShared), 0);
    submit_tokens(own, s, std::span(ids[s]).subspan(kShared), 9);
    own.wait();
    for (uint32_t o = 0; o < 9; ++o)
      expected[s].insert(expected[s].end(), own.logits(o).begin(), own.logits(o).end());
  }
  submit_ahead(own, 2);
  for (int i = 0; i < 7; ++i) own.submit_next();
  own.wait();
  expected_drawn.take(own);

  ModelRunner shared(model, options);
  submit_tokens(shared, 0, std::span(ids[0]).first(kShared), 0);
  const uint32_t pages[] = {0, 1};  // of slot 0
  shared.set_pages(0, 1, 0, pages);
  shared.set_slot(1, {.length = kShared});
  Drawn drawn;
  for (const uint32_t s : {1u, 0u}) {
    submit_tokens(shared, s, std::span(ids[s]).subspan(kShared), 9);
    shared.wait();
    std::vector<float> logits;
    for (uint32_t o = 0; o < 9; ++o)
      logits.insert(logits.end(), shared.logits(o).begin(), shared.logits(o).end());
    EXPECT_TRUE(same_bits(logits, expected[s])) << "slot " << s;
  }
  submit_ahead(shared, 2);
  for (int i = 0; i < 7; ++i) shared.submit_next();
  shared.wait();
  drawn.take(shared);
  for (const size_t s : {0u, 1u}) EXPECT_EQ(drawn.tokens(s), expected_drawn.tokens(s));
  EXPECT_NE(drawn.tokens(0), drawn.tokens(1));
}

TEST_P(StepOf, DraftedRowsTakenBackLeaveNoTrace) {
  const model::Model model = open_tales(2);
  RunnerOptions options = options_for(1, 256, GetParam());
  options.outputs = 4;
  ModelRunner runner(model, options);
  const std::vector<uint32_t> prompt = some_ids(61);  // the drafts cross the edge of a page

  // Never drafted: five tokens, one by one, by the device alone.
  std::vector<uint32_t> tokens;
  std::vector<std::vector<float>> logits;
  submit_tokens(runner, 0, prompt);
  for (int i = 0; i < 6; ++i) {
    runner.wait();
    tokens.push_back(runner.sampled(i == 0 ? 60 : 0));
    logits.push_back(copy(runner.logits(0)));
    submit_ahead(runner);
  }
  runner.wait();

  // Two right ones and two wrong ones, behind the token of the slot.
  const auto draft = [&] {
    runner.set_slot(0, {});
    submit_tokens(runner, 0, prompt);
    const uint32_t drafted[] = {ops::kLastToken, tokens[1], tokens[2] + 1, tokens[3] + 1};
    submit_tokens(runner, 0, drafted, 4);
    runner.wait();
    EXPECT_EQ(runner.sampled(0), tokens[1]);
    EXPECT_EQ(runner.sampled(1), tokens[2]);
    for (uint32_t o = 0; o < 2; ++o) EXPECT_TRUE(same_bits(runner.logits(o), logits[o + 1])) << o;
    EXPECT_FALSE(same_bits(runner.logits(2), logits[3]));
  };
  const auto kept = static_cast<uint32_t>(prompt.size()) + 2;

  // Taken back by the position of the next request.
  draft();
  submit_tokens(runner, 0, std::span(tokens).subspan(2, 1), 1, kept);
  runner.wait();
  EXPECT_TRUE(same_bits(runner.logits(0), logits[3]));
  for (size_t i = 4; i < 6; ++i) {
    submit_ahead(runner);
    runner.wait();
    EXPECT_TRUE(same_bits(runner.logits(0), logits[i])) << i;
  }
  // Taken back in the slot, from where it goes on by itself.
  draft();
  runner.set_slot(0, {.length = kept, .last_token = tokens[2]});
  for (size_t i = 3; i < 6; ++i) {
    submit_ahead(runner);
    runner.wait();
    EXPECT_TRUE(same_bits(runner.logits(0), logits[i])) << i;
  }
}

TEST(Step, ADecodeStepOf512SlotsSendsAtMost16KiB) {
  if (kThreadSanitizer) GTEST_SKIP() << "counts bytes; StepOf and RunningAhead run the same kernels";
  constexpr uint32_t kSlots = 512;
  const model::Model model = open_tales(2, /*validate=*/false);
  RunnerOptions options = options_for(kSlots, 64);
  options.capacities = {kSlots};
  ModelRunner runner(model, options);
  // Each slot its own first token.
  std::vector<StepRequest> requests;
  std::vector<uint32_t> outputs;
  for (uint32_t s = 0; s < kSlots; ++s) {
    requests.push_back({.slot = s, .rows = 1});
    outputs.push_back(s);
  }
  runner.submit({requests, some_ids(kSlots), outputs});
  const std::vector<uint32_t> ahead(kSlots, ops::kLastToken);
  runner.submit({requests, ahead, outputs});
  runner.wait();
  EXPECT_LE(runner.sent_bytes(), 16384u);
  EXPECT_GE(runner.sent_bytes(), kSlots * sizeof(uint32_t)) << "it counts";

  runner.submit_next();
  EXPECT_EQ(runner.sent_bytes(), 0u);
  runner.wait();
  // What a sequence changes is what it sends.
  const uint32_t page = 3;
  runner.set_pages(0, 7, 0, {&page, 1});
  runner.set_slot(7, {});
  runner.submit_next();
  EXPECT_EQ(runner.sent_bytes(), sizeof(Slot) + sizeof(uint32_t));
  EXPECT_THROW(runner.wait(), InvalidArgument) << "a slot without a token";

  uint32_t results = 0;
  for (StepResult result; runner.next(result); ++results) {
    if (results < 3 * kSlots) {
      EXPECT_EQ(result.slot, results % kSlots);
    }
  }
  EXPECT_EQ(results, 4 * kSlots);
}

constexpr int64_t kFirstRequest = sizeof(ops::StepHeader) / sizeof(uint32_t);  // a word of the block

/// Writes a word of the device's memory that the host would not write.
void spoil(ModelRunner& runner, const Buffer& buffer, int64_t word, uint32_t value) {
  const auto words = static_cast<int64_t>(buffer.bytes() / sizeof(uint32_t));
  runner.device().write(buffer.view(DType::u32, {words}, 0).slice(word, 1), std::array{value});
}

/// Two slots decode; what `spoil_it` does to the memory of the device is of the first one, or of none.
void expect_one_refused(const std::function<void(ModelRunner&)>& spoil_it, uint32_t slot, uint32_t bits) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, options_for(2)), alone(model, options_for(2));
  for (ModelRunner* each : {&runner, &alone}) {
    for (uint32_t s = 0; s < 2; ++s) submit_tokens(*each, s, some_ids(kPrompt[s], s + 1));
    submit_ahead(*each, 2);
    each->wait();
    each->discard_results();
  }
  alone.submit_next();
  alone.wait();

  spoil_it(runner);
  const size_t pages = 4;  // of the first slot
  const auto bytes = static_cast<int64_t>(runner.cache().layer(0).bytes());
  const auto unit = static_cast<size_t>(bytes) / (2 * 2 * pages);
  const auto first_slot = [&] {
    std::vector<uint8_t> values;
    for (uint32_t layer = 0; layer < runner.cache().groups()[0].layers.size(); ++layer) {
      const Buffer all = runner.cache().layer(layer).view(DType::u8, {bytes});
      const std::vector<uint8_t> cache = runner.device().read<uint8_t>(all);
      for (const size_t kind : {0u, 1u}) {
        const auto part = std::span(cache).subspan(kind * 2 * pages * unit, pages * unit);
        values.insert(values.end(), part.begin(), part.end());
      }
    }
    return values;
  };
  const std::vector<uint8_t> before = first_slot();
  runner.submit_next();
  EXPECT_THROW(runner.wait(), InvalidArgument);
  EXPECT_TRUE(first_slot() == before) << "its cache is as it was";
  StepResult result;
  std::vector<StepResult> results;
  while (runner.next(result)) results.push_back(result);
  ASSERT_EQ(results.size(), 2u);
  const StepResult& refused = results[slot == ops::kIdle ? 1 : 0];
  EXPECT_EQ(refused.slot, slot);
  EXPECT_EQ(refused.token, ops::kNoToken);
  EXPECT_EQ(refused.bits & kStatusBits, bits);
  const StepResult& other = results[slot == ops::kIdle ? 0 : 1];
  EXPECT_EQ(other.slot, 1u);
  EXPECT_EQ(other.bits, 0u);
  EXPECT_EQ(other.token, alone.sampled(1));
  EXPECT_TRUE(same_bits(runner.logits(1), alone.logits(1)));

  // A slot that has met it stops, the other goes on; what the block itself says wrong is raised again.
  runner.submit_next();
  if (bits == ops::kPageOutOfRange) {
    EXPECT_NO_THROW(runner.wait());
    ASSERT_TRUE(runner.next(result));
    EXPECT_EQ(result.slot, 1u);
    EXPECT_FALSE(runner.next(result));
  } else {
    EXPECT_THROW(runner.wait(), InvalidArgument);
  }
}

TEST(Step, APageOutOfRangeIsRaisedForItsSlotAlone) {
  for (const uint32_t page : {8u, 0xFFFFFFFFu}) {
    expect_one_refused([&](ModelRunner& runner) { spoil(runner, runner.slots().page_table(0), 0, page); }, 0,
                       ops::kPageOutOfRange);
  }
}

TEST(Step, ASlotOutOfRangeIsRaisedForNone) {
  for (const uint32_t slot : {2u, 0xFFFFFFFEu}) {
    expect_one_refused([&](ModelRunner& runner) { spoil(runner, runner.step(1).block, kFirstRequest, slot); },
                       ops::kIdle, ops::kSlotOutOfRange);
  }
}

TEST(Step, APositionOutOfRangeIsRaisedForItsSlotAlone) {
  expect_one_refused(
      [&](ModelRunner& runner) { spoil(runner, runner.step(1).block, kFirstRequest + 2, 0xFFFFFFFE); }, 0,
      ops::kPositionOutOfRange);
}

TEST(Step, ResultsThatWereOverwrittenAreNotGiven) {
  if (kThreadSanitizer) GTEST_SKIP() << "thousands of steps of one worker";
  const model::Model model = open_tales(1, /*validate=*/false);
  ModelRunner runner(model, options_for(1, 64));
  const uint32_t token = 5;
  for (uint32_t i = 0; i <= runner.slots().ring_entries(); ++i) submit_tokens(runner, 0, {&token, 1}, 1, 0);
  runner.wait();
  StepResult result;
  EXPECT_THROW(runner.next(result), Error);
  runner.discard_results();
  EXPECT_FALSE(runner.next(result));
  submit_tokens(runner, 0, {&token, 1}, 1, 0);
  runner.wait();
  EXPECT_TRUE(runner.next(result));
}

}  // namespace
}  // namespace refrain::test
