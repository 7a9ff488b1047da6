// Replay: after warm-up nothing is recorded, planned or allocated; the same program is submitted for each
// token. Also what a step does with values out of range, and that every edge of the model's plan is needed.
#include <gtest/gtest.h>

#include <atomic>

#include "refrain/backend/remote/remote_backend.h"
#include "refrain/graph/check.h"
#include "tests/counted_new.h"
#include "tests/model/tales.h"

namespace refrain::test {
namespace {

using model::ModelRunner;
using model::RunnerOptions;
using model::StepRow;
using model::StepSequence;

RunnerOptions small() {
  RunnerOptions options;
  options.context_tokens = 256;
  return options;
}

/// One decode step at `position` with the program of capacity 1.
void start_decode(ModelRunner& runner, uint32_t token, uint32_t position) {
  const StepRow row{token, position, 0, 0};
  const StepSequence sequence = runner.sequence(0, position + 1);
  const uint32_t output = 0;
  runner.submit({std::span(&row, 1), std::span(&sequence, 1), std::span(&output, 1)});
  runner.wait();
}

TEST(Replay, SteadyStateAllocatesRecordsAndCopiesNothing) {
  if (!kCountsHeap) GTEST_SKIP() << "a sanitizer brings an operator new of its own";
  const model::Model model = open_tales(2, /*validate=*/false);
  ModelRunner runner(model, small());
  start_decode(runner, 5, 0);
  for (int i = 0; i < 8; ++i) {
    runner.submit_next();
    runner.wait();
  }

  // What the backend itself has copied, where it is one that counts.
  const Buffer some = runner.device().buffer(DType::u8, {1});
  const auto copied = [&] {
    if (std::string_view(device_name()) != "remote") return backend::RemoteCounters{};
    return backend::remote_counters(some.memory()->backend());
  };
  const Counters before = runner.device().counters();
  const backend::RemoteCounters copied_before = copied();
  const uint64_t heap_before = heap_allocations.load();
  uint64_t tokens = 0;
  for (int i = 0; i < 100; ++i) {
    runner.submit_next();
    runner.wait();
    tokens += runner.sampled(0);
  }
  const uint64_t heap = heap_allocations.load() - heap_before;
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
}

TEST(Replay, GenerationSubmitsOneProgramForEachToken) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  const Counters before = runner.device().counters();
  model::GenerateOptions options;
  options.max_tokens = 50;
  const model::GenerateResult result = model::generate(runner, some_ids(70), options);
  const Counters after = runner.device().counters();
  EXPECT_EQ(result.generated_tokens, 50u);
  // Two chunks of the prompt draw the first token, each further token is one submission.
  EXPECT_EQ(after.submissions - before.submissions, 2u + 49u);
  EXPECT_EQ(after.programs_prepared, before.programs_prepared);
  EXPECT_EQ(after.dispatches_recorded, before.dispatches_recorded);
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
      if (label != "layer 0" && label != "embedding" && label != "head" && label != "sample" &&
          label != "advance") {
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
    // Fused, these are ten commands in a chain.
    EXPECT_GT(removed, fuse ? 8u : 20u);
  }
}

TEST(Replay, ValuesOutOfRangeAreRaisedAndLeaveTheCacheAlone) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  const std::vector<uint32_t> ids = some_ids(30);
  const std::vector<float> expected = all_logits(runner, ids);

  const auto run = [&](StepRow row, uint32_t length) {
    const StepSequence sequence = runner.sequence(0, length);
    const uint32_t output = 0;
    runner.submit({std::span(&row, 1), std::span(&sequence, 1), std::span(&output, 1)});
    runner.wait();
  };
  EXPECT_THROW(run({0xFFFFFFFF, 3, 0, 0}, 30), InvalidArgument);  // token
  EXPECT_THROW(run({5, 0xFFFFFFFF, 0, 0}, 30), InvalidArgument);  // position
  EXPECT_THROW(run({5, 30, 0, 0}, 30), InvalidArgument);          // past the length
  EXPECT_THROW(run({5, 256, 0, 0}, 257), InvalidArgument);        // past the cache
  EXPECT_THROW(run({5, 3, 1, 0}, 30), InvalidArgument);           // sequence

  // A token out of range writes its position's key and value from a row of zeros; the positions before it
  // stay.
  run({ids[2], 2, 0, 0}, 3);
  const size_t vocab = model.config().vocab;
  EXPECT_TRUE(std::equal(runner.logits(0).begin(), runner.logits(0).end(), expected.begin() + 2 * vocab));
}

TEST(Replay, AWaitRaisesWhatAnyStepSinceTheLastOneMet) {
  const model::Model model = open_tales(2);
  ModelRunner runner(model, small());
  const StepSequence sequence = runner.sequence(0, 3);
  const std::vector<StepRow> bad = {{0xFFFFFFFF, 0, 0, 0}, {5, 1, 0, 0}};
  const StepRow good{5, 0, 0, 0};
  const uint32_t output = 0;
  runner.submit({bad, std::span(&sequence, 1), {}});
  runner.submit({std::span(&good, 1), std::span(&sequence, 1), std::span(&output, 1)});
  EXPECT_THROW(runner.wait(), InvalidArgument);
  // Raised once: what follows is not blamed for it.
  const std::vector<StepRow> fine = {good, {6, 1, 0, 0}};
  runner.submit({fine, std::span(&sequence, 1), {}});
  EXPECT_NO_THROW(runner.wait());
}

TEST(Replay, BatchesThatDoNotFitAreRefused) {
  const model::Model model = open_tales(1);
  ModelRunner runner(model, small());
  std::vector<StepRow> rows;
  for (uint32_t i = 0; i < 65; ++i) rows.push_back({5, i, 0, 0});
  const std::vector<StepRow> twice = {{5, 7, 0, 0}, {6, 7, 0, 0}};
  const StepSequence sequence;
  const std::vector<uint32_t> outputs = {1};
  EXPECT_THROW(runner.submit({rows, std::span(&sequence, 1), {}}), InvalidArgument);
  EXPECT_THROW(runner.submit({std::span(rows).first(1), std::span(&sequence, 1), outputs}), InvalidArgument);
  EXPECT_THROW(runner.submit({twice, std::span(&sequence, 1), {}}), InvalidArgument);
  EXPECT_THROW(runner.wait(), InvalidArgument);
  EXPECT_THROW(runner.submit_next(), InvalidArgument);
  RunnerOptions options = small();
  options.capacities = {64, 1};
  EXPECT_THROW(ModelRunner(model, options), InvalidArgument);
  options = small();
  options.context_tokens = 1025;
  EXPECT_THROW(ModelRunner(model, options), InvalidArgument);
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
}

}  // namespace
}  // namespace refrain::test
