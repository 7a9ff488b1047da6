// Replay: after warm-up nothing is recorded, planned or allocated; the same program is submitted for each
// token. Also what a step does with values out of range, and that every edge of the model's plan is needed.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>

#include "refrain/backend/remote/remote_backend.h"
#include "refrain/graph/check.h"
#include "tests/counted_new.h"
#include "tests/model/tales.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

using model::ModelRunner;
using model::RunnerOptions;
using model::StepRequest;

RunnerOptions small() {
  RunnerOptions options;
  options.context_tokens = 256;
  options.capacities = {1, 64};
  return options;
}

TEST(Replay, SteadyStateAllocatesRecordsAndCopiesNothing) {
  if (!kCountsHeap) GTEST_SKIP() << "a sanitizer brings an operator new of its own";
  const model::Model model = open_tales(2, /*validate=*/false);
  ModelRunner runner(model, small());
  const uint32_t first = 5;
  submit_tokens(runner, 0, {&first, 1});
  const StepRequest request{.slot = 0, .rows = 1};
  const uint32_t token = ops::kLastToken, output = 0;
  const model::Slot anew{.length = 1, .last_token = 7};
  uint64_t tokens = 0;
  const auto take = [&] {
    model::StepResult result;
    ASSERT_TRUE(runner.next(result));
    tokens += result.token;
  };
  const auto send = [&] {  // a step, and the slot with it
    runner.set_slot(0, anew);
    runner.submit({{&request, 1}, {&token, 1}, {&output, 1}});
    runner.wait();
    take();
  };
  runner.wait();
  take();
  for (int i = 0; i < 64; ++i) send();
  runner.submit_next();
  runner.wait();
  take();

  // What the backend itself has copied, where it is one that counts.
  const Buffer some = runner.device().buffer(DType::u8, {1});
  const auto copied = [&] {
    if (std::string_view(device_name()) != "remote") return backend::RemoteCounters{};
    return backend::remote_counters(some.memory()->backend());
  };
  const Counters before = runner.device().counters();
  const backend::RemoteCounters copied_before = copied();
  const uint64_t heap_before = heap_allocations.load();
  tokens = 0;
  for (int i = 0; i < 100; ++i) {
    runner.submit_next();
    runner.wait();
    take();
  }
  uint64_t heap = heap_allocations.load() - heap_before;
  const Counters after = runner.device().counters();
  const backend::RemoteCounters copied_after = copied();
  EXPECT_EQ(heap, 0u);
  EXPECT_GT(tokens, 0u);
  EXPECT_EQ(after.writes, before.writes);
  EXPECT_EQ(after.reads, before.reads);
  EXPECT_EQ(after.updates, before.updates);
  EXPECT_EQ(copied_after.writes, copied_before.writes);
  EXPECT_EQ(copied_after.reads, copied_before.reads);
  EXPECT_EQ(copied_after.updates, copied_before.updates);
  EXPECT_EQ(after.allocations, before.allocations);
  EXPECT_EQ(after.dispatches_recorded, before.dispatches_recorded);
  EXPECT_EQ(after.plans, before.plans);
  EXPECT_EQ(after.programs_prepared, before.programs_prepared);
  EXPECT_EQ(after.submissions, before.submissions + 100);
  EXPECT_EQ(after.commands_submitted - before.commands_submitted, 100 * runner.report(0).commands);

  // Nor does a step that is sent allocate.
  heap = heap_allocations.load();
  for (int i = 0; i < 20; ++i) send();
  heap = heap_allocations.load() - heap;
  EXPECT_EQ(heap, 0u);
  EXPECT_EQ(runner.device().counters().updates, after.updates + 40);
}

TEST(Replay, GenerationSubmitsOneProgramForEachToken) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  const Counters before = runner.device().counters();
  model::GenerateOptions options;
  options.max_tokens = 50;
  const model::GenerateResult result = model::generate(runner, some_ids(70), options);
  const Counters after = runner.device().counters();
  EXPECT_EQ(result.prompt_tokens, 70u);
  EXPECT_EQ(result.generated_tokens, 50u);
  EXPECT_GT(result.prompt_s, 0);
  EXPECT_GT(result.decode_s, 0);
  // Two chunks of the prompt draw the first token, each further token is one submission.
  EXPECT_EQ(after.submissions - before.submissions, 2u + 49u);
  EXPECT_EQ(after.programs_prepared, before.programs_prepared);
  EXPECT_EQ(after.dispatches_recorded, before.dispatches_recorded);
}

TEST(Replay, AGenerationDrawsWhatItsMaskAllows) {
  const model::Model model = open_tales(1);
  RunnerOptions options = small();
  options.masks = 2;
  ModelRunner runner(model, options);
  std::vector<uint32_t> words((model.config().vocab + 31) / 32);
  words[1] = 1u << 5 | 1u << 9;
  runner.set_mask(1, words);
  std::vector<uint32_t> drawn;
  model::GenerateOptions how;
  how.sampling.mask = 1;
  how.max_tokens = 8;
  how.on_token = [&](uint32_t token) {
    drawn.push_back(token);
    return true;
  };
  model::generate(runner, some_ids(3), how);
  EXPECT_EQ(drawn.size(), 8u);
  for (const uint32_t token : drawn) EXPECT_TRUE(token == 37 || token == 41) << token;
}

TEST(Replay, TheCheckerNamesThePairOfEveryRemovedEdge) {
  const model::Model model = open_tales(1);
  for (const bool fuse : {false, true}) {
    RunnerOptions options = small();
    options.plan.fuse = fuse;
    const ModelRunner runner(model, options);
    const backend::PlanData& plan = runner.program(0).plan().data();
    EXPECT_TRUE(graph::check_order(plan).empty());
    // Every edge of the first layer and of what surrounds it; the other layers repeat it.
    size_t removed = 0;
    for (uint32_t c = 0; c < plan.commands.size(); ++c) {
      const std::string& label = plan.labels[plan.commands[c].label];
      if (label != "layer 0" && label != "begin" && label != "embedding" && label != "head" &&
          label != "sample" && label != "advance") {
        continue;
      }
      for (uint32_t d = 0; d < plan.commands[c].deps.count; ++d) {
        backend::PlanData cut = plan;
        const backend::Range deps = cut.commands[c].deps;
        const uint32_t from = cut.deps[deps.first + d];
        std::swap(cut.deps[deps.first + d], cut.deps[deps.first + deps.count - 1]);
        --cut.commands[c].deps.count;
        ++removed;
        bool named = false;
        for (const graph::Unordered& pair : graph::check_order(cut)) {
          named |= pair.first == from && pair.second == c;
        }
        EXPECT_TRUE(named) << "edge " << from << " -> " << c << " (" << label << "), fused " << fuse;
      }
    }
    // Fused, these are eleven commands in a chain.
    EXPECT_GT(removed, fuse ? 9u : 21u);
  }
}

TEST(Replay, ValuesOutOfRangeAreRaisedAndLeaveTheCacheAlone) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  const std::vector<uint32_t> ids = some_ids(30);
  const std::vector<float> expected = all_logits(runner, ids);

  const auto run = [&](uint32_t token, uint32_t position, uint32_t slot = 0) {
    submit_tokens(runner, slot, {&token, 1}, 1, position);
    runner.wait();
  };
  EXPECT_THROW(run(5, 31), InvalidArgument);  // behind what is cached
  runner.set_slot(0, {.length = 256});
  EXPECT_THROW(run(5, 256), InvalidArgument);         // past the cache
  EXPECT_THROW(run(5, 0, 1), InvalidArgument);        // slot
  EXPECT_THROW(run(0xFFFFFFFE, 3), InvalidArgument);  // token

  // A token out of range writes its position's key and value from a row of zeros; the positions before it
  // stay.
  run(ids[2], 2);
  const size_t vocab = model.config().vocab;
  EXPECT_TRUE(std::equal(runner.logits(0).begin(), runner.logits(0).end(), expected.begin() + 2 * vocab));
}

TEST(Replay, AWaitRaisesWhatAnyStepSinceTheLastOneMet) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  const std::vector<uint32_t> bad = {0xFFFFFFFE, 5}, good = {5}, fine = {5, 6};
  submit_tokens(runner, 0, bad, 0, 0);
  submit_tokens(runner, 0, good, 1, 0);
  EXPECT_THROW(runner.wait(), InvalidArgument);
  // Raised once: what follows is not blamed for it.
  submit_tokens(runner, 0, fine, 0, 0);
  EXPECT_NO_THROW(runner.wait());
}

TEST(Replay, WhatAStepThatGoesOnMetIsRaisedAtTheWait) {
  const model::Model model = open_tales(1);
  ModelRunner runner(model, small());
  const std::vector<uint32_t> first = {5, 6};
  submit_tokens(runner, 0, first);
  submit_ahead(runner);
  runner.wait();
  const auto raised = [&] {
    try {
      runner.wait();
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const uint32_t vocab = model.config().vocab;
  for (const auto& [token, said] :
       {std::pair{vocab - 1, ""}, {vocab, "[step] slot 0: a token id outside the vocabulary"}}) {
    runner.set_slot(0, {.length = 2, .last_token = token});
    runner.submit_next();
    EXPECT_EQ(raised(), said);
    EXPECT_EQ(raised(), "") << "once";
  }
  // By whichever wait comes next.
  runner.set_slot(0, {.length = 2, .last_token = vocab});
  runner.submit_next();
  runner.set_slot(0, {.length = 2, .last_token = 7});
  runner.submit_next();
  EXPECT_EQ(raised(), "[step] slot 0: a token id outside the vocabulary");
  EXPECT_EQ(raised(), "");
}

// A slot at the end of the cache has stopped: to go on from there, or from behind it, computes and writes nothing.
TEST(Replay, AStepThatGoesOnPastTheCacheIsIdle) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  submit_tokens(runner, 0, some_ids(3));
  submit_ahead(runner);
  runner.wait();
  const auto cached = [&] {
    std::vector<std::byte> bytes;
    for (uint32_t i = 0; i < model.config().state.size(); ++i) {
      const Buffer& layer = runner.cache().layer(i);
      bytes.resize(bytes.size() + layer.bytes());
      runner.device().read(layer, std::span(bytes).last(layer.bytes()));
    }
    return bytes;
  };
  const auto results = [&] {
    std::vector<model::StepResult> told;
    for (model::StepResult result; runner.next(result);) told.push_back(result);
    return told;
  };
  results();

  runner.set_slot(0, {.length = 255, .last_token = 7});
  const std::vector<std::byte> before = cached();
  runner.submit_next();
  runner.wait();
  const std::vector<model::StepResult> last = results();
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(last[0].length, 256u);
  EXPECT_EQ(last[0].bits, uint32_t{ops::kStopLimit});
  const std::vector<std::byte> full = cached();
  EXPECT_NE(full, before) << "the last place";
  runner.submit_next();
  for (const uint32_t length : {256u, 257u, 1024u, 0xFFFFFFFFu}) {
    runner.set_slot(0, {.length = length, .last_token = 7});
    runner.submit_next();
    EXPECT_NO_THROW(runner.wait()) << length;
    EXPECT_TRUE(results().empty()) << length;
    EXPECT_EQ(cached(), full) << length;
  }
}

TEST(Replay, BatchesThatDoNotFitAreRefused) {
  const model::Model model = open_tales(1);
  RunnerOptions options = small();
  options.slots = 2;
  ModelRunner runner(model, options);
  const auto refusal = [&](const std::vector<StepRequest>& requests, size_t tokens,
                           const std::vector<uint32_t>& outputs) -> std::string {
    const std::vector<uint32_t> ids = some_ids(tokens);
    try {
      runner.submit({requests, ids, outputs});
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_EQ(refusal({{.slot = 0, .rows = 65}}, 65, {}),
            "[model_runner] batch: expected at most 64 tokens, 2 requests and 2 outputs, got 65, 1 and 0");
  EXPECT_EQ(refusal({{.slot = 0, .rows = 3}}, 3, {0, 1, 2}),
            "[model_runner] batch: expected at most 64 tokens, 2 requests and 2 outputs, got 3, 1 and 3");
  EXPECT_EQ(refusal({{.slot = 0, .rows = 1}}, 1, {1}), "[batch] outputs: expected tokens below 1, got 1");
  EXPECT_EQ(refusal({{.slot = 0, .rows = 2}}, 1, {}),
            "[batch] tokens: expected the 2 of the requests, got 1");
  EXPECT_EQ(refusal({{.slot = 1, .rows = 1}, {.slot = 1, .rows = 1}}, 2, {}),
            "[batch] request 1: expected distinct slots, got 1 again");
  EXPECT_EQ(refusal({{.slot = 2, .rows = 1}}, 1, {}), "[batch] request 0: expected a slot below 2, got 2");
  EXPECT_EQ(refusal({{.slot = 0, .rows = 0}}, 0, {}), "[batch] request 0: expected tokens, got none");
  EXPECT_EQ(test::refusal([&] { runner.wait(); }), "[model_runner] wait: nothing was submitted before");
  EXPECT_EQ(test::refusal([&] { runner.submit_next(); }),
            "[model_runner] submit_next: nothing was submitted before");
  EXPECT_EQ(refusal({{.slot = 0, .rows = 1}}, 1, {0}), "");
  EXPECT_EQ(test::refusal([&] { runner.submit_next(); }),
            "[model_runner] submit_next: expected a step whose requests are one row, kLastToken; the last "
            "one's are not")
      << "its token was the host's";
  runner.wait();

  EXPECT_THROW(runner.set_slot(2, {}), InvalidArgument);
  EXPECT_THROW(runner.set_slot(0, {.mask = 0}), InvalidArgument);
  EXPECT_THROW(runner.set_slot(0, {.stop_set = 1}), InvalidArgument);
  const uint32_t pages[] = {7, 8};
  EXPECT_NO_THROW(runner.set_pages(0, 0, 0, std::span(pages).first(1)));
  EXPECT_THROW(runner.set_pages(0, 0, 0, pages), InvalidArgument);
  EXPECT_THROW(runner.set_pages(1, 0, 0, std::span(pages).first(1)), InvalidArgument);
  EXPECT_THROW(runner.set_pages(0, 0, 4, std::span(pages).first(1)), InvalidArgument);
  EXPECT_THROW(runner.set_mask(0, {}), InvalidArgument);
  EXPECT_THROW(runner.set_stop_set(0, some_ids(17)), InvalidArgument);

  options = small();
  options.capacities = {};
  EXPECT_EQ(ModelRunner(model, options).max_rows(), model.device().info().composes ? 64u : 512u);
  options.capacities = {64, 1};
  EXPECT_THROW(ModelRunner(model, options), InvalidArgument);
  options.capacities = {0, 1};
  EXPECT_THROW(ModelRunner(model, options), InvalidArgument);
  options = small();
  options.context_tokens = 1025;
  EXPECT_THROW(ModelRunner(model, options), InvalidArgument);
}

TEST(StepBlocks, RefuseWhatTheyHaveNoRoomFor) {
  Device device = Device::open(device_name());
  constexpr model::StepLayout kLayout{4, 2, 3};
  const model::StepBlock step(device, kLayout);
  model::StepImage image(kLayout, 8);
  const auto refused = [&](const std::vector<StepRequest>& requests, size_t tokens, size_t outputs) {
    const std::vector<uint32_t> ids(tokens), wanted(outputs);
    return refusal([&] { step.encode({requests, ids, wanted}, image); });
  };
  EXPECT_EQ(refused({{.slot = 0, .rows = 2}, {.slot = 1, .rows = 2}}, 4, 3), "nothing was thrown");
  EXPECT_EQ(refused({{.slot = 0, .rows = 1}, {.slot = 1, .rows = 1}, {.slot = 2, .rows = 1}}, 3, 3),
            "[batch] requests: expected at most 2, got 3");
  EXPECT_EQ(refused({{.slot = 0, .rows = 5}}, 5, 3), "[batch] tokens: expected at most 4, got 5");
  EXPECT_EQ(refused({{.slot = 0, .rows = 4}}, 4, 4), "[batch] outputs: expected at most 3, got 4");
  EXPECT_EQ(refused({{.slot = 0, .rows = 2}, {.slot = 1, .rows = 2}}, 4, 3), "nothing was thrown") << "again";
}

TEST(StepBlocks, WhatTheHostSendsSharesNoCacheLineWithTheRest) {
  Device device = Device::open(device_name());
  for (const model::StepLayout& layout : {model::StepLayout{1, 1, 1}, {7, 2, 5}, {64, 3, 9}}) {
    const model::StepBlock step(device, layout);
    EXPECT_EQ(step.block.offset_bytes(), 0u);
    EXPECT_EQ(step.live.offset_bytes() % 64, 0u) << layout.rows;
    EXPECT_GE(step.live.offset_bytes(), step.block.bytes());
  }
}

TEST(Replay, AGenerationRefusesWhatIsOutOfRange) {
  const model::Model model = open_tales(1);
  ModelRunner runner(model, small());
  const std::vector<uint32_t> ids = some_ids(3);
  const auto refused = [&](const std::vector<uint32_t>& prompt, const auto& change) {
    model::GenerateOptions options;
    options.max_tokens = 1;
    change(options);
    return refusal([&] { model::generate(runner, prompt, options); });
  };
  const auto as_it_is = [](model::GenerateOptions&) {};
  EXPECT_EQ(refused(ids, as_it_is), "nothing was thrown");
  EXPECT_EQ(refused({}, as_it_is), "prompt: expected at least one token, got none");
  EXPECT_EQ(refused(some_ids(256), as_it_is), "nothing was thrown");
  EXPECT_EQ(refused(some_ids(257), as_it_is), "prompt: expected at most 256 tokens, the context, got 257");
  const uint32_t vocab = model.config().vocab;
  const std::string bad_id = "prompt: token 1: expected an id below the vocabulary's " +
                             std::to_string(vocab) + ", got " + std::to_string(vocab);
  EXPECT_EQ(refused({5, vocab - 1}, as_it_is), "nothing was thrown");
  EXPECT_EQ(refused({5, vocab}, as_it_is), bad_id);
  EXPECT_EQ(refusal([&] { model::evaluate(runner, std::vector<uint32_t>{5, vocab}, 0, {}); }), bad_id);
  constexpr float kInf = std::numeric_limits<float>::infinity(),
                  kNan = std::numeric_limits<float>::quiet_NaN();
  for (const auto& [bad, got] : {std::pair{-1.0f, "-1"}, {kInf, "inf"}, {kNan, "nan"}}) {
    EXPECT_EQ(refused(ids, [&](auto& o) { o.sampling.temperature = bad; }),
              std::string("temperature: expected a number >= 0, got ") + got);
  }
  for (const auto& [bad, got] : {std::pair{-0.5f, "-0.5"}, {1.5f, "1.5"}, {kNan, "nan"}}) {
    EXPECT_EQ(refused(ids, [&](auto& o) { o.sampling.top_p = bad; }),
              std::string("top-p: expected a number in [0, 1], got ") + got);
  }
  for (const float edge : {0.0f, 1.0f})
    EXPECT_EQ(refused(ids, [&](auto& o) { o.sampling.top_p = edge; }), "nothing was thrown");
  EXPECT_EQ(refused(ids, [](auto& o) { o.steps_in_flight = 0; }),
            "steps in flight: expected at least 1, got 0");
  EXPECT_EQ(refused(ids, [](auto& o) { o.stop_ids = some_ids(16); }), "nothing was thrown");
  EXPECT_EQ(refused(ids, [](auto& o) { o.stop_ids = some_ids(17); }),
            "stop ids: expected at most 16, got 17");
}

TEST(Replay, AGenerationOfNoTokensSubmitsNothing) {
  const model::Model model = open_tales(1);
  ModelRunner runner(model, small());
  const uint64_t before = runner.device().counters().submissions;
  model::GenerateOptions options;
  options.max_tokens = 0;
  const model::GenerateResult result = model::generate(runner, some_ids(3), options);
  EXPECT_EQ(result.reason, model::StopReason::max_tokens);
  EXPECT_EQ(result.prompt_tokens, 3u);
  EXPECT_EQ(result.generated_tokens, 0u);
  EXPECT_EQ(runner.device().counters().submissions, before);
}

TEST(Replay, AGenerationTakesNoResultsOfStepsBeforeIt) {
  const model::Model model = open_tales(1);
  std::vector<std::vector<uint32_t>> drawn;
  for (const bool steps_before : {false, true}) {
    ModelRunner runner(model, small());
    if (steps_before) submit_tokens(runner, 0, some_ids(64, 2));
    model::GenerateOptions options;
    options.max_tokens = 3;
    options.on_token = [&, &tokens = drawn.emplace_back()](uint32_t token) {
      tokens.push_back(token);
      return true;
    };
    model::generate(runner, some_ids(3), options);
  }
  EXPECT_EQ(drawn[0], drawn[1]);
}

TEST(Replay, ACallbackEndsAGeneration) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  for (const uint32_t last : {1u, 5u}) {
    model::GenerateOptions options;
    uint32_t seen = 0;
    options.on_token = [&](uint32_t) { return ++seen != last; };
    const model::GenerateResult result = model::generate(runner, some_ids(3), options);
    EXPECT_EQ(result.reason, model::StopReason::callback);
    EXPECT_EQ(result.generated_tokens, last);
    EXPECT_EQ(seen, last);
  }
}

TEST(Replay, CancelEndsAGeneration) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  std::atomic<bool> cancel{false};
  model::GenerateOptions options;
  options.cancel = &cancel;
  uint32_t seen = 0;
  options.on_token = [&](uint32_t) {
    cancel = ++seen == 5;
    return true;
  };
  const model::GenerateResult result = model::generate(runner, some_ids(3), options);
  EXPECT_EQ(result.reason, model::StopReason::cancelled);
  EXPECT_EQ(result.generated_tokens, 5u);
  const model::GenerateResult at_once = model::generate(runner, some_ids(3), options);
  EXPECT_EQ(at_once.reason, model::StopReason::cancelled) << "before the prompt";
  EXPECT_EQ(at_once.generated_tokens, 0u);
}

}  // namespace
}  // namespace refrain::test
