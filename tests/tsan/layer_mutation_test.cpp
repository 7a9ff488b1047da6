// A Qwen3 layer with what surrounds it, under the mutation tool: dropping any one of its stored edges is a
// data race that ThreadSanitizer reports, and the whole plan has none.
#include <gtest/gtest.h>

#include <numeric>

#include "refrain/backend/null/null_backend.h"
#include "refrain/format/model_folder.h"
#include "refrain/model/architecture.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/sample/sample.h"
#include "refrain/ops/step_advance/step_advance.h"
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
  model::WeightLoader loader(device, folder, nullptr);
  const auto architecture = model::family_of(json).load(json, loader);

  constexpr uint32_t kRows = 2;
  const model::KvCache cache(device, config, 1, 64);
  const model::StepBlock step(device, {kRows, 1, cache.pages()});
  const Buffer status = device.buffer(DType::u32, {2});
  const Buffer logits = device.buffer(DType::f32, {kRows, config.vocab}).with_live_rows(step.live_outputs);
  CommandEncoder encoder = device.encoder();
  architecture->record(encoder, {step, cache, status, logits});
  ops::sample(encoder, {.logits = logits,
                        .index = step.outputs,
                        .step_rows = step.rows,
                        .sequences = step.sequences,
                        .allowed = {},
                        .status = status});
  ops::step_advance(encoder, {.rows = step.rows, .sequences = step.sequences});
  const ComputeGraph graph = encoder.finish();

  const model::StepRow rows[kRows] = {{7, 0, 0, 0}, {8, 1, 0, 0}};
  model::StepSequence sequence;
  sequence.length = kRows;
  sequence.pages = cache.pages_per_sequence();
  const uint32_t outputs[kRows] = {0, 1};
  std::vector<std::byte> image;
  step.encode({rows, std::span(&sequence, 1), outputs}, cache.page_table(), image);
  const UpdateData update{step.block.device_view(), image};
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
