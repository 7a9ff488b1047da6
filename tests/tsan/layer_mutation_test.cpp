// A Qwen3 layer with what surrounds it, under the mutation tool: dropping any one of its stored edges is a
// data race that ThreadSanitizer reports, and the whole plan has none.
#include <gtest/gtest.h>

#include <numeric>

#include "refrain/backend/null/null_backend.h"
#include "refrain/format/model_folder.h"
#include "refrain/model/architecture.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "tests/model/first_layers.h"
#include "tests/tsan/edge_mutation.h"

namespace refrain::backend::testing {
namespace {

// More than the commands of one layer with embedding and head: each gets a worker, and its own scratch.
constexpr uint32_t kWorkers = 64;

TEST(LayerMutation, EveryEdgeOfALayer) {
  if (!under_thread_sanitizer()) GTEST_SKIP() << "this build has no ThreadSanitizer";

  // Planned for the portable kernels: ThreadSanitizer sees no access of 32 bytes.
  const std::vector<Kernel> kernels = ops::cpu_kernels();
  refrain::Device device(make_null(kernels, 0, kWorkers), ops::cpu_layouts(), {});
  const format::ModelFolder folder = format::ModelFolder::open("models/tales-qwen3-4bit");
  const format::Json json = test::first_layers(folder.path(), 1);
  const model::Config config = model::read_config(folder.path(), json);
  const model::FolderWeights weights(folder);
  model::WeightLoader loader(device, weights, nullptr);
  const auto architecture = model::family_of(json).load(json, loader);

  constexpr uint32_t kRows = 2;
  const model::KvCache cache(device, config, 1, 64);
  const model::Slots slots(device, {.stop_sets = 1}, cache);
  const model::StepBlock step(device, {kRows, 1, kRows});
  const Buffer logits = device.buffer(DType::f32, {kRows, config.vocab}).with_live_rows(step.live_outputs);
  CommandEncoder encoder = device.encoder();
  const model::Forward forward{step, slots, cache, logits, 64};
  record_begin(encoder, forward);
  architecture->record(encoder, forward);
  record_end(encoder, forward);
  const ComputeGraph graph = encoder.finish();

  // From position 0 in each run, so that all are the same.
  const model::StepRequest request{.slot = 0, .rows = kRows, .position = 0};
  const uint32_t tokens[kRows] = {7, 8}, outputs[kRows] = {0, 1};
  model::StepImage image(step.layout, 1);
  step.encode({{&request, 1}, tokens, outputs}, image);
  const Buffer block = step.block.slice(0, static_cast<int64_t>(image.bytes.size() / 4));
  const UpdateData update{block.device_view(), image.bytes};
  for (const bool fuse : {false, true}) {
    PlanOptions options;
    options.fuse = fuse;
    const auto [plan, report] = device.plan(graph, options);
    ASSERT_LE(plan.data().commands.size(), kWorkers);
    MutationInput input;
    input.plan = &plan.data();
    input.updates = {&update, 1};
    input.kernels = kernels;

    const RunResult whole = run_with_edge_dropped(input, nullptr);
    ASSERT_FALSE(whole.failed) << whole.output;
    ASSERT_FALSE(whole.reported) << whole.output;
    const std::vector<Edge> all = edges(plan.data());
    EXPECT_EQ(all.size(), report.edges);
    const auto& commands = plan.data().commands;
    for (const Edge& edge : all) {
      // A report is proof; its absence is not, since ThreadSanitizer forgets accesses. So a miss is tried again.
      RunResult result;
      for (int attempt = 0; attempt < 5 && !result.reported; ++attempt) {
        result = run_with_edge_dropped(input, &edge);
      }
      EXPECT_FALSE(result.failed) << result.output;
      EXPECT_TRUE(result.reported) << title(plan.data(), commands[edge.command]) << " #" << edge.command
                                   << " without " << title(plan.data(), commands[edge.dep]) << " #"
                                   << edge.dep;
    }
  }
}

}  // namespace
}  // namespace refrain::backend::testing
