#include "bench/dispatch/task_graph.h"

#include <algorithm>
#include <random>

#include "refrain/backend/null/null_backend.h"
#include "refrain/format/model_folder.h"
#include "refrain/format/safetensors.h"
#include "refrain/format/test_folder.h"
#include "refrain/model/architecture.h"
#include "refrain/model/decoder_config.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"

namespace refrain::bench {
namespace {

constexpr const char* kConfig = R"({
  "model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 64, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "vocab_size": 64,
  "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true})";

void write_weights(const std::filesystem::path& path, const model::DecoderSizes& c) {
  const int64_t q = int64_t{c.heads} * c.head_dim, kv = int64_t{c.kv_heads} * c.head_dim;
  std::vector<format::SafetensorsSpec> specs = {
      {"model.embed_tokens.weight", DType::f32, {c.vocab, c.hidden}},
      {"model.norm.weight", DType::f32, {c.hidden}},
  };
  for (uint32_t i = 0; i < c.layers; ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".";
    const auto add = [&](const char* name, const Shape& shape) {
      specs.push_back({p + name + ".weight", DType::f32, shape});
    };
    add("input_layernorm", {c.hidden});
    add("self_attn.q_proj", {q, c.hidden});
    add("self_attn.k_proj", {kv, c.hidden});
    add("self_attn.v_proj", {kv, c.hidden});
    add("self_attn.q_norm", {c.head_dim});
    add("self_attn.k_norm", {c.head_dim});
    add("self_attn.o_proj", {c.hidden, q});
    add("post_attention_layernorm", {c.hidden});
    add("mlp.gate_proj", {c.intermediate, c.hidden});
    add("mlp.up_proj", {c.intermediate, c.hidden});
    add("mlp.down_proj", {c.hidden, c.intermediate});
  }
  format::SafetensorsWriter writer(path, specs);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> values(-0.1f, 0.1f);
  for (const format::SafetensorsSpec& spec : specs) {
    std::vector<float> data(static_cast<size_t>(spec.shape.elements()));
    std::ranges::generate(data, [&] { return values(random); });
    writer.append(spec.name, std::as_bytes(std::span(data)));
  }
  writer.commit();
}

}  // namespace

TaskGraph chain() {
  TaskGraph graph{"chain", std::vector<std::vector<uint32_t>>(kCommands)};
  for (uint32_t i = 1; i < kCommands; ++i) graph.deps[i] = {i - 1};
  return graph;
}

TaskGraph width_8() {
  TaskGraph graph{"width_8", std::vector<std::vector<uint32_t>>(kCommands)};
  for (uint32_t i = 8; i < kCommands; ++i) graph.deps[i] = {i - 8, i % 8 == 7 ? i - 15 : i - 7};
  return graph;
}

TaskGraph random_graph() {
  TaskGraph graph{"random", std::vector<std::vector<uint32_t>>(kCommands)};
  std::mt19937 random(1);
  for (uint32_t i = 1; i < kCommands; ++i) {
    auto& deps = graph.deps[i];
    for (uint32_t k = 0; k < 2; ++k)
      deps.push_back(i - 1 - static_cast<uint32_t>(random() % std::min(i, 16u)));
    if (deps[0] == deps[1]) deps.pop_back();
  }
  return graph;
}

TaskGraph qwen3_28_layers() {
  const format::TestFolder files;
  files.write("config.json", kConfig);
  const format::Json json = format::Json::load(files.path() / "config.json");
  write_weights(files.path() / "model.safetensors", model::DecoderSizes(json));

  Device device(backend::make_null(ops::cpu_kernels(), 0, 2), ops::cpu_layouts(), {});
  const format::ModelFolder folder = format::ModelFolder::open(files.path());
  const model::FolderWeights weights(folder);
  model::WeightLoader loader(device, weights, nullptr);
  const model::Config c = model::read_config(files.path(), json);
  const auto architecture = model::family_of(json).load(json, loader);
  const model::KvCache cache(device, c, 1, c.context_tokens);
  const model::Slots slots(device, {}, cache);
  const model::StepBlock step(device, {1, 1, 1});
  const Buffer logits = device.buffer(DType::f32, {1, c.vocab}).with_live_rows(step.live_outputs);
  CommandEncoder encoder = device.encoder();
  architecture->record(encoder, {step, slots, cache, logits, c.context_tokens});
  const auto [plan, report] = device.plan(encoder.finish(), {.fuse = false});

  TaskGraph graph{"qwen3_28_layers", {}};
  for (const backend::PlanCommand& command : plan.data().commands) {
    const auto deps = std::span(plan.data().deps).subspan(command.deps.first, command.deps.count);
    graph.deps.emplace_back(deps.begin(), deps.end());
  }
  return graph;
}

}  // namespace refrain::bench
