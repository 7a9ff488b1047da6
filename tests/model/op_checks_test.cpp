// Every call that the families record, damaged in one place: the op's check refuses another type, another size of a
// dimension that others share, another rank, or a missing argument. And what the ops say that their calls cost.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "refrain/graph/compute_graph.h"
#include "refrain/model/architecture.h"
#include "refrain/model/kv_cache.h"
#include "refrain/model/random_weights.h"
#include "refrain/model/slots.h"
#include "refrain/model/step.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/ops.h"
#include "tests/model/tales.h"

namespace refrain::test {
namespace {

constexpr const char* kConfigs[] = {
    R"("model_type": "qwen3")",
    R"("model_type": "qwen2")",
    R"("model_type": "gemma3_text", "sliding_window": 10, "layer_types": ["sliding_attention"])",
};

ComputeGraph record(const char* settings) {
  Device device = Device::open("cpu");
  const format::Json json = format::Json::parse(
      std::string(R"({"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32,
        "num_key_value_heads": 2, "intermediate_size": 192, "vocab_size": 1500, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true, )") +
          settings + "}",
      "config.json");
  const model::RandomWeights weights;
  model::WeightLoader loader(device, weights, nullptr);
  const model::Config config = model::read_config(json);
  const auto architecture = model::family_of(json).load(json, loader);
  const model::KvCache cache(device, config, 3, 256);
  const model::Slots slots(device, {.slots = 3, .masks = 1, .mask_words = 47, .stop_sets = 1}, cache);
  const model::StepBlock step(device, {7, 2, 5});
  const Buffer logits = device.buffer(DType::f32, {5, config.vocab}).with_live_rows(step.live_outputs);
  CommandEncoder encoder = device.encoder();
  const model::Forward forward{step, slots, cache, logits, 256};
  model::record_begin(encoder, forward);
  architecture->record(encoder, forward);
  model::record_end(encoder, forward);
  const Buffer best = device.buffer(DType::u32, {5});
  ops::argmax(encoder, {.input = device.buffer(DType::f32, {5, 40}), .output = best});
  ops::softcap(
      encoder,
      {.input = device.buffer(DType::f32, {5, 40}), .output = device.buffer(DType::f32, {5, 40}), .cap = 2});
  return encoder.finish();
}

/// Whether the op's check refuses the call.
bool refuses(const backend::OpCall& call) {
  try {
    backend::check_dtypes(call);
    call.op->check(call);
    return false;
  } catch (const InvalidArgument&) {
    return true;
  }
}

std::vector<int64_t> dims_of(const Shape& shape) { return {shape.dims().begin(), shape.dims().end()}; }

TEST(OpChecks, EachArgumentIsLookedAt) {
  std::set<std::string_view> ops;
  std::set<std::string> accepted;
  for (const char* settings : kConfigs) {
    const ComputeGraph graph = record(settings);
    for (const graph::Command& command : graph.commands) {
      if (command.op == nullptr) continue;
      ops.insert(command.op->name);
      std::vector<backend::ArgumentInfo> infos;
      backend::OpCall call = graph::op_call(graph, command, infos);
      ASSERT_FALSE(refuses(call)) << command.op->name;
      std::vector<backend::ArgumentInfo> args(call.args.begin(), call.args.end());
      call.args = args;
      for (size_t i = 0; i < args.size(); ++i) {
        const backend::ArgumentInfo whole = args[i];
        if (!whole.bound) continue;
        const auto expect_refused = [&](const char* what) {
          if (!refuses(call))
            accepted.insert(std::string(command.op->name) + '.' + std::string(command.op->args[i].name) +
                            ' ' + what);
          args[i] = whole;
        };
        args[i].bound = false;
        if (!command.op->args[i].optional) expect_refused("missing");
        args[i] = whole;
        if (whole.weight == nullptr) {
          args[i].dtype = DType::i16;
          expect_refused("of another type");
        } else {
          args[i].weight = nullptr;
          expect_refused("no weight");
        }
        backend::WeightInfo weight;
        const auto set_shape = [&](const std::vector<int64_t>& dims) {
          args[i].shape = Shape(dims);
          if (whole.weight == nullptr) return;
          weight = *whole.weight;
          weight.shape = args[i].shape;
          args[i].weight = &weight;
        };
        for (size_t axis = 0; axis < whole.shape.rank(); ++axis) {
          for (const int64_t step : {-1, 1}) {
            std::vector<int64_t> dims = dims_of(whole.shape);
            dims[axis] += step;
            set_shape(dims);
            expect_refused(("of another size at axis " + std::to_string(axis)).c_str());
          }
        }
        std::vector<int64_t> dims = dims_of(whole.shape);
        dims.push_back(1);
        set_shape(dims);
        expect_refused("of another rank");
      }
    }
  }
  // Rewrites make these of attention; models record neither.
  for (const char* name : {"attention_merge", "attention_part"}) EXPECT_TRUE(ops.insert(name).second);
  EXPECT_EQ(ops.size(), ops::all_schemas().size());
  // Sizes that an op takes from this argument alone; a block may be longer than its step.
  std::set<std::string> free;
  for (const char* place :
       {"argmax.input of another size at axis 1", "embedding.status of another size at axis 0",
        "embedding.weight of another size at axis 0", "gather_rows.input of another size at axis 0",
        "gather_rows.status of another size at axis 0", "kv_write.cache of another size at axis 1",
        "kv_write.page_table of another size at axis 1", "rope.frequencies of another size at axis 0",
        "sample.logits of another size at axis 1", "sample.masks of another size at axis 0",
        "sample.step_rows of another size at axis 0", "step_advance.rows of another size at axis 0",
        "step_advance.segments of another size at axis 0", "step_advance.stop_sets of another size at axis 0",
        "step_begin.block of another size at axis 0", "step_begin.outputs of another size at axis 0",
        "step_begin.rows of another size at axis 0", "step_begin.segments of another size at axis 0"})
    free.insert(place);
  EXPECT_EQ(accepted, free);
}

TEST(OpCosts, AreThoseOfTheShapes) {
  // Of the first call of each op: bytes but for those of matrices, of which each op takes rows, and operations.
  struct Expected {
    uint64_t bytes = 0, matrix_rows = 0, flops = 0;
  };
  const std::map<std::string_view, Expected> expected = {
      {"add", {3 * 7 * 64 * 4, 0, 7 * 64}},
      {"add_bias", {2 * 7 * 128 * 4 + 128 * 4, 0, 7 * 128}},
      {"argmax", {5 * 40 * 4 + 5 * 4, 0, 5 * 40}},
      {"attention",
       {2 * 7 * 4 * 32 * 4 + 7 * 16 + 3 * 4 * 4 + 2 * 12 * 2 * 64 * 32 * 4 + 4 * 4, 0, 7 * 4 * 256 * 32 * 4}},
      {"embedding", {7 * 16 + 7 * 64 * 4, 7, 7 * 64 * 2}},
      {"gather_rows", {2 * 5 * 64 * 4 + 5 * 4, 0, 0}},
      {"gelu_mul", {3 * 7 * 192 * 4, 0, 7 * 192 * 8}},
      {"kv_write", {2 * 7 * 2 * 32 * (4 + 4), 0, 0}},
      {"matmul", {7 * 64 * 4 + 7 * 128 * 4, 128, 7 * 128 * 64 * 2}},
      {"rms_norm", {2 * 7 * 64 * 4 + 64 * 4, 0, 7 * 64 * 4}},
      {"rope", {2 * 7 * 4 * 32 * 4 + 7 * 16 + 16 * 4, 0, 7 * 4 * 16 * 6}},
      {"sample", {5 * 1500 * 4, 0, 5 * 1500 * 33}},
      {"silu_mul", {3 * 7 * 192 * 4, 0, 7 * 192 * 4}},
      {"softcap", {2 * 5 * 40 * 4, 0, 5 * 40 * 24}},
      {"step_advance", {2 * 180, 0, 0}},
      {"step_begin", {2 * 7 * 16 + 2 * 64, 0, 0}},
  };
  std::set<std::string_view> seen;
  for (const char* settings : kConfigs) {
    const ComputeGraph graph = record(settings);
    for (const graph::Command& command : graph.commands) {
      if (command.op == nullptr || !seen.insert(command.op->name).second) continue;
      std::vector<backend::ArgumentInfo> infos;
      const backend::OpCall call = graph::op_call(graph, command, infos);
      uint64_t row_bytes = 0;  // of the matrix
      for (const backend::ArgumentInfo& info : call.args) {
        if (info.weight != nullptr && info.shape.rank() == 2)
          row_bytes = info.layout->packed_bytes(*info.weight) / static_cast<uint64_t>(info.shape[0]);
      }
      const backend::Cost cost = command.op->cost(call);
      const Expected& of_op = expected.at(command.op->name);
      EXPECT_EQ(cost.bytes, of_op.bytes + of_op.matrix_rows * row_bytes) << command.op->name;
      EXPECT_EQ(cost.flops, of_op.flops) << command.op->name;
    }
  }
  EXPECT_EQ(seen.size(), expected.size());
}

}  // namespace
}  // namespace refrain::test
