// The whole road above a device that fails: a model is loaded, prepared and run while the n-th allocation,
// prepare, submit, submission or call fails, for every n until nothing fails. What is thrown is the library's
// own, nothing leaks, nothing hangs, and the next attempt on the same device succeeds. And a fused layer that
// fails at each of its commands.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/error.h"
#include "refrain/format/model_folder.h"
#include "refrain/model/architecture.h"
#include "refrain/model/model_runner.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "tests/model/first_layers.h"

namespace refrain::backend::testing {
namespace {

constexpr const char* kModel = "models/tales-qwen3-4bit";

// The token that follows two tokens, by three submissions of two programs.
uint32_t generate(const std::shared_ptr<Backend>& backend) {
  const refrain::Device device(backend, ops::cpu_layouts(), {});
  const model::Model model = model::Model::load(device, kModel);
  model::RunnerOptions options;
  options.context_tokens = 64;
  options.capacities = {1, 2};
  model::ModelRunner family(model, options);
  const model::StepRequest two{.slot = 0, .rows = 2}, one{.slot = 0, .rows = 1};
  const uint32_t tokens[] = {7, 8}, last = ops::kLastToken, outputs[] = {0, 1};
  family.submit({{&two, 1}, tokens, std::span(outputs).last(1)});
  family.submit({{&one, 1}, {&last, 1}, std::span(outputs).first(1)});
  family.submit_next();
  family.wait(std::chrono::minutes(1));
  return family.sampled(0);
}

struct Kind {
  const char* name;
  uint64_t FaultPlan::*field;
  bool again;   // the device can be used afterwards
  bool remote;  // with memory that the host cannot reach
};

class FrontFaults : public ::testing::TestWithParam<Kind> {};

TEST_P(FrontFaults, EveryNth) {
  const Kind& kind = GetParam();
  const std::vector<Kernel> kernels = ops::cpu_kernels();
  CpuOptions options;
  options.threads = 2;
  const auto make = [&] {
    std::unique_ptr<Backend> device = make_cpu(options, kernels);
    if (kind.remote) device = make_remote(std::move(device));
    return make_fault(std::move(device));
  };
  const uint32_t expected = generate(std::shared_ptr<Backend>(make()));
  uint64_t n = 0;
  for (bool faulted = true; faulted;) {
    ASSERT_LT(++n, 2000u);
    std::unique_ptr<Backend> owned = make();
    Backend* const fault = owned.get();
    const std::shared_ptr<Backend> backend = make_validate(std::move(owned));
    FaultPlan plan;
    plan.*kind.field = n;
    set_faults(*fault, plan);
    bool thrown = false;
    try {
      EXPECT_EQ(generate(backend), expected);
    } catch (const DeviceError&) {
      thrown = true;
    }
    faulted = fault_counts(*fault).faults > 0;
    // A loss at the very end meets the wait of a destructor, which has nobody to tell.
    EXPECT_TRUE(thrown == faulted || (kind.field == &FaultPlan::loss && faulted)) << "n " << n;
    EXPECT_EQ(backend.use_count(), 1) << "n " << n;
    set_faults(*fault, {});
    if (!kind.again && faulted) continue;
    for (uint32_t queue = 0; queue < backend->info.queue_count; ++queue) backend->recover(queue);
    EXPECT_EQ(backend->memory().used_bytes, 0u) << "n " << n << ": leaked";
    EXPECT_EQ(generate(backend), expected) << "n " << n;
  }
  EXPECT_GE(n, 3u) << "the road has several of each";
}

INSTANTIATE_TEST_SUITE_P(Kinds, FrontFaults,
                         ::testing::Values(Kind{"allocation", &FaultPlan::allocation, true, false},
                                           Kind{"prepare", &FaultPlan::prepare, true, false},
                                           Kind{"submit", &FaultPlan::submit, true, false},
                                           Kind{"execution", &FaultPlan::execution, true, false},
                                           Kind{"command", &FaultPlan::command, true, false},
                                           Kind{"loss", &FaultPlan::loss, false, false},
                                           Kind{"remote_copy", &FaultPlan::copy, true, true},
                                           Kind{"remote_loss", &FaultPlan::loss, false, true}),
                         [](const auto& test) { return test.param.name; });

// One layer of the model with embedding and head for two tokens, fused, in an arena where nothing is reused.
class Layer {
 public:
  explicit Layer(std::shared_ptr<Backend> backend)
      : backend_(std::move(backend)), device_(backend_, ops::cpu_layouts(), {}) {
    const format::ModelFolder folder = format::ModelFolder::open(kModel);
    const format::Json json = test::first_layers(folder.path(), 1);
    const model::Config config = model::read_config(folder.path(), json);
    const model::FolderWeights weights(folder);
    model::WeightLoader loader(device_, weights, nullptr);
    architecture_ = model::family_of(json).load(json, loader);
    const model::KvCache cache(device_, config, 1, 64);
    const model::Slots slots(device_, {}, cache);
    const model::StepBlock step(device_, {kRows, 1, kRows});
    const Buffer logits = device_.buffer(DType::f32, {kRows, config.vocab}).with_live_rows(step.live_outputs);
    CommandEncoder encoder = device_.encoder();
    model::record_begin(encoder, {step, slots, cache, logits, 64});
    architecture_->record(encoder, {step, slots, cache, logits, 64});
    PlanOptions options;
    options.reuse_memory = false;
    plan_ = device_.plan(encoder.finish("layer"), options).first;
    arena_ = device_.buffer(DType::u8, {static_cast<int64_t>(plan_.arena_bytes())});
    program_ = device_.prepare(plan_, {.queue = 0, .arena = arena_, .label = {}});

    const model::StepRequest request{.slot = 0, .rows = kRows};
    const uint32_t tokens[kRows] = {7, 8}, outputs[kRows] = {0, 1};
    model::StepImage image(step.layout, 1);
    step.encode({{&request, 1}, tokens, outputs}, image);
    image_ = image.bytes;
    block_ = step.block.slice(0, static_cast<int64_t>(image_.size() / 4));
  }

  /// What the submission failed with, if it did.
  std::string run() {
    const refrain::Update update{block_, image_};
    const Point point = device_.submit(program_, {&update, 1});
    try {
      device_.wait(point, std::chrono::minutes(1));
    } catch (const DeviceError& error) {
      return error.what();
    }
    return {};
  }

  const std::vector<PlanCommand>& commands() const { return plan_.data().commands; }
  const PlanData& plan() const { return plan_.data(); }
  /// The bytes that a command writes, apart from scratch: of values in the arena alone, or of all memory.
  std::vector<std::byte> written(const PlanCommand& command, bool arena_alone) const {
    std::vector<std::byte> bytes;
    for (uint32_t a = 0; a < command.args.count; ++a) {
      const Argument& arg = plan_.data().args[command.args.first + a];
      const bool writes = arg.access == Access::out || arg.access == Access::inout;
      const bool arena = arg.view.allocation == nullptr;
      if (!writes || a == command.scratch_arg || arg.view.bytes == 0 || (arena_alone && !arena)) continue;
      BufferView view = arg.view;
      if (arena) {
        view.allocation = arena_.device_view().allocation;
        view.offset_bytes += arena_.offset_bytes();
      }
      bytes.resize(bytes.size() + view.bytes);
      backend_->read(view, std::span(bytes).last(view.bytes));
    }
    return bytes;
  }

 private:
  static constexpr uint32_t kRows = 2;

  const std::shared_ptr<Backend> backend_;
  refrain::Device device_;
  std::unique_ptr<model::Architecture> architecture_;
  refrain::Plan plan_;
  Buffer arena_, block_;
  refrain::Program program_;
  std::vector<std::byte> image_;
};

TEST(FusedLayerFaults, WhatCameBeforeTheFailingCommandHasRunAndNothingElse) {
  const std::vector<Kernel> kernels = ops::cpu_kernels();
  CpuOptions options;
  options.threads = 2;
  Layer whole(make_cpu(options, kernels));
  ASSERT_EQ(whole.run(), "");
  const auto zero = [](std::byte byte) { return byte == std::byte{0}; };
  size_t groups = 0, values = 0;
  for (const bool inside : {false, true}) {  // the checker of the contract around the fault, or within it
    for (size_t failing = 0; failing < whole.commands().size(); ++failing) {
      SCOPED_TRACE(std::to_string(failing) + " " + title(whole.plan(), whole.commands()[failing]));
      std::unique_ptr<Backend> device = make_remote(make_cpu(options, kernels));
      if (inside) device = make_validate(std::move(device));
      device = make_fault(std::move(device), {.command = failing + 1});
      if (!inside) device = make_validate(std::move(device));
      Layer layer(std::move(device));
      const std::string said = layer.run();
      EXPECT_NE(said.find("failed at command " + std::to_string(failing) + " "), std::string::npos) << said;
      for (size_t i = 0; i < layer.commands().size(); ++i) {
        const PlanCommand& command = layer.commands()[i];
        if (i < failing) {
          EXPECT_EQ(layer.written(command, false), whole.written(whole.commands()[i], false)) << i;
          groups += command.kind == CommandKind::fused_group;
        } else {
          const std::vector<std::byte> bytes = layer.written(command, true);
          EXPECT_TRUE(std::ranges::all_of(bytes, zero)) << i;
          values += !bytes.empty();
        }
      }
      EXPECT_NE(layer.run().find("did not run: "), std::string::npos) << "and nothing runs after it";
    }
  }
  EXPECT_GT(groups, 0u);
  EXPECT_GT(values, 0u);
}

}  // namespace
}  // namespace refrain::backend::testing
