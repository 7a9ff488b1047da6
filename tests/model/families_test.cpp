// Each family as a small model of random weights: the same bits for any cut of a prompt that is longer than the
// window, for any number of threads, fused or not; and what an architecture declares of its state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>

#include "refrain/format/model_folder.h"
#include "refrain/format/safetensors.h"
#include "refrain/format/test_folder.h"
#include "refrain/model/decoder_config.h"
#include "tests/model/tales.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

using model::FixedState;
using model::KvState;
using model::LayerState;
using model::ModelRunner;
using model::RunnerOptions;
using model::SharedKvState;

constexpr const char* kSizes = R"(
  "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "intermediate_size": 96, "vocab_size": 1500, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
  "tie_word_embeddings": true, )";

enum class HeadNorms { none, each, all };

struct Tiny {
  const char* name;
  const char* config;              ///< beside kSizes
  std::vector<const char*> norms;  ///< of a layer
  HeadNorms head_norms = HeadNorms::none;
  const char* gate = "rms_norm+matmul*2+silu_mul";  ///< what is fused
  std::vector<const char*> biases = {};             ///< of a layer
  const char* attention = nullptr;                  ///< what else is fused
  bool fused = false;  ///< queries, keys and values are one matrix, gate and up another
};

const Tiny kFamilies[] = {
    {"qwen3", R"("model_type": "qwen3")", {"input_layernorm", "post_attention_layernorm"}, HeadNorms::each},
    {"llama",
     R"("model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32})",
     {"input_layernorm", "post_attention_layernorm"}},
    {"gemma3",
     R"("model_type": "gemma3_text", "sliding_window": 10, "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"])",
     {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
      "post_feedforward_layernorm"},
     HeadNorms::each,
     "rms_norm+matmul*2+gelu_mul"},
    {"gemma2",
     R"("model_type": "gemma2", "sliding_window": 10, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0)",
     {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
      "post_feedforward_layernorm"},
     HeadNorms::none,
     "rms_norm+matmul*2+gelu_mul"},
    {"qwen2",
     R"("model_type": "qwen2", "use_sliding_window": true, "sliding_window": 10, "max_window_layers": 2)",
     {"input_layernorm", "post_attention_layernorm"},
     HeadNorms::none,
     "rms_norm+matmul*2+silu_mul",
     {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
     "rms_norm+matmul+add_bias+matmul+add_bias+matmul+add_bias+rope*2+kv_write"},
    {"ministral",
     R"("model_type": "ministral", "sliding_window": 10,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"])",
     {"input_layernorm", "post_attention_layernorm"}},
    {"ministral3",
     R"("model_type": "ministral3", "rope_parameters": {"rope_type": "yarn", "factor": 4,
        "original_max_position_embeddings": 20, "llama_4_scaling_beta": 0.1})",
     {"input_layernorm", "post_attention_layernorm"}},
    {"mistral",
     R"("model_type": "mistral", "sliding_window": 10)",
     {"input_layernorm", "post_attention_layernorm"}},
    {"olmo2",
     R"("model_type": "olmo2")",
     {"post_attention_layernorm", "post_feedforward_layernorm"},
     HeadNorms::all,
     "matmul*2+silu_mul"},
    {"granite",
     R"("model_type": "granite", "embedding_multiplier": 12, "attention_multiplier": 0.1, "residual_multiplier": 0.22,
        "logits_scaling": 8)",
     {"input_layernorm", "post_attention_layernorm"}},
    {"olmo3",
     R"("model_type": "olmo3", "sliding_window": 10, "layer_types": ["sliding_attention", "full_attention",
        "sliding_attention"], "rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64})",
     {"post_attention_layernorm", "post_feedforward_layernorm"},
     HeadNorms::all,
     "matmul*2+silu_mul"},
    {"phi3",
     R"("model_type": "phi3", "sliding_window": 10, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 2, 3], "long_factor": [1, 2, 3, 4]})",
     {"input_layernorm", "post_attention_layernorm"},
     HeadNorms::none,
     "rms_norm+matmul*2+silu_mul",
     {},
     "rms_norm+matmul*3+rope*2+kv_write",
     true},
    {"smollm3",
     R"("model_type": "smollm3", "no_rope_layer_interval": 2)",
     {"input_layernorm", "post_attention_layernorm"}},
};

std::string config_of(const Tiny& tiny) { return std::string("{") + kSizes + tiny.config + "}"; }

/// A folder of such a model.
void write(const format::TestFolder& files, const Tiny& tiny) {
  files.write("config.json", config_of(tiny));
  const model::DecoderSizes c(format::Json::parse(config_of(tiny), "config.json"),
                              {.partial_rotation = true});
  std::vector<format::SafetensorsSpec> specs;
  const auto add = [&](const std::string& name, const Shape& shape) {
    specs.push_back({name + ".weight", DType::bf16, shape});
  };
  add("model.embed_tokens", {c.vocab, c.hidden});
  add("model.norm", {c.hidden});
  for (uint32_t i = 0; i < c.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".", attention = layer + "self_attn.";
    for (const char* norm : tiny.norms) add(layer + norm, {c.hidden});
    for (const char* module : tiny.biases) {
      const bool keys = std::string_view(module).find("q_proj") == std::string_view::npos;
      specs.push_back({layer + module + ".bias", DType::bf16, {(keys ? c.kv_heads : c.heads) * c.head_dim}});
    }
    const uint32_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim;
    if (tiny.fused) {
      add(attention + "qkv_proj", {queries + 2 * keys, c.hidden});
      add(layer + "mlp.gate_up_proj", {2 * c.intermediate, c.hidden});
    } else {
      add(attention + "q_proj", {queries, c.hidden});
      for (const char* name : {"k_proj", "v_proj"}) add(attention + name, {keys, c.hidden});
      for (const char* name : {"mlp.gate_proj", "mlp.up_proj"}) add(layer + name, {c.intermediate, c.hidden});
    }
    add(attention + "o_proj", {c.hidden, c.heads * c.head_dim});
    if (tiny.head_norms != HeadNorms::none) {
      const bool all = tiny.head_norms == HeadNorms::all;
      add(attention + "q_norm", {all ? c.heads * c.head_dim : c.head_dim});
      add(attention + "k_norm", {all ? c.kv_heads * c.head_dim : c.head_dim});
    }
    add(layer + "mlp.down_proj", {c.hidden, c.intermediate});
  }
  format::SafetensorsWriter writer(files.path() / "model.safetensors", specs);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> values(-0.3f, 0.3f);
  for (const format::SafetensorsSpec& spec : specs) {
    std::vector<bf16> data(static_cast<size_t>(spec.shape.elements()));
    std::ranges::generate(data, [&] { return bf16::from_float(values(random)); });
    writer.append(spec.name, std::as_bytes(std::span(data)));
  }
  writer.commit();
}

model::Model load(const std::filesystem::path& folder, uint32_t threads, bool portable) {
  DeviceOptions options;
  options.threads = threads;
  options.portable_kernels = portable;
  options.validate = true;
  return model::Model::load(Device::open(device_name(), options), folder);
}

class Families : public ::testing::TestWithParam<Tiny> {};
INSTANTIATE_TEST_SUITE_P(All, Families, ::testing::ValuesIn(kFamilies),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_P(Families, SameBitsForAnyCutOfThePrompt) {
  const format::TestFolder files;
  write(files, GetParam());
  const std::vector<uint32_t> ids = some_ids(150);
  for (const bool portable : {false, true}) {
    if (kThreadSanitizer && !portable) continue;
    std::vector<float> expected;
    for (const uint32_t threads : {1u, 2u, 3u}) {
      const model::Model model = load(files.path(), threads, portable);
      // Chunks of one, around the window and a page, of everything at once.
      for (const uint32_t capacity : {1u, 7u, 9u, 10u, 11u, 63u, 64u, 65u, 150u}) {
        RunnerOptions options;
        options.capacities = {capacity};
        options.outputs = capacity;
        options.plan.fuse = capacity != 10;
        ModelRunner runner(model, options);
        const std::vector<float> logits = all_logits(runner, ids);
        if (expected.empty()) expected = logits;
        ASSERT_EQ(logits.size(), expected.size());
        EXPECT_EQ(std::memcmp(logits.data(), expected.data(), logits.size() * sizeof(float)), 0)
            << threads << " threads, portable " << portable << ", chunks of " << capacity;
      }
    }
  }
}

TEST_P(Families, TheGateIsFusedWithItsProducts) {
  const format::TestFolder files;
  write(files, GetParam());
  RunnerOptions options;
  const model::Model model = load(files.path(), 1, false);
  const backend::DeviceInfo& device = model.device().info();
  if (!device.composes) GTEST_SKIP() << "kernels are not composed there";
  options.capacities = {device.most_fused_rows, device.most_fused_rows + 1};
  const ModelRunner runner(model, options);
  std::string titles;
  const auto fused = [&](size_t member, std::string_view wanted) {
    const backend::PlanData& plan = runner.program(member).plan().data();
    titles.clear();
    for (const backend::PlanCommand& command : plan.commands) titles += backend::title(plan, command) + '\n';
    size_t count = 0;
    for (size_t at = titles.find(wanted); at != titles.npos; at = titles.find(wanted, at + 1)) ++count;
    return count;
  };
  EXPECT_EQ(fused(0, GetParam().gate), 3u) << titles;
  EXPECT_EQ(fused(1, GetParam().gate), 0u) << titles;
  if (GetParam().attention != nullptr) {
    EXPECT_EQ(fused(0, GetParam().attention), 3u) << titles;
  }
  ASSERT_FALSE(runner.report(1).misses.empty());
  EXPECT_NE(runner.report(1).misses.front().find("it has 9 rows, and groups at most 8 here"),
            std::string::npos)
      << runner.report(1).misses.front();
}

TEST_P(Families, EachCommandIsLabelledByItsPart) {
  const format::TestFolder files;
  write(files, GetParam());
  RunnerOptions options;
  options.capacities = {4};
  options.plan.fuse = false;
  const ModelRunner runner(load(files.path(), 1, true), options);
  const backend::PlanData& plan = runner.program(0).plan().data();
  std::vector<std::string> parts;
  for (const backend::PlanCommand& command : plan.commands) {
    const std::string& label = plan.labels[command.label];
    if (parts.empty() || parts.back() != label) parts.push_back(label);
  }
  EXPECT_EQ(parts, (std::vector<std::string>{"begin", "embedding", "layer 0", "layer 1", "layer 2", "head",
                                             "sample", "advance"}));
}

TEST_P(Families, LoadingTellsOfEachTensor) {
  const format::TestFolder files;
  write(files, GetParam());
  std::vector<uint64_t> told;
  model::LoadOptions options;
  options.progress = [&](uint64_t done_bytes, uint64_t) {
    told.push_back(done_bytes);
    return true;
  };
  (void)model::Model::load(Device::open("cpu"), files.path(), options);
  const auto folder = format::ModelFolder::open(files.path());
  EXPECT_TRUE(std::ranges::is_sorted(told));
  // Of a layer's fused matrices, three parts more.
  EXPECT_EQ(std::set(told.begin(), told.end()).size(),
            folder.tensor_names().size() + (GetParam().fused ? 3 * 3 : 0));
  EXPECT_EQ(told.back(), folder.totals().bytes);
}

TEST_P(Families, PlainMatricesAreUsedWhereTheyLie) {
  const format::TestFolder files;
  write(files, GetParam());
  const model::Model model = model::Model::load(Device::open("cpu"), files.path());
  const auto folder = format::ModelFolder::open(files.path());
  uint64_t matrices_bytes = 0;
  for (const std::string& name : folder.tensor_names()) {
    const TensorSource tensor = folder.tensor(name);
    if (tensor.shape.rank() == 2) matrices_bytes += tensor.segments[0].bytes.size();
  }
  EXPECT_EQ(model.weights().in_place_bytes, matrices_bytes) << "norms are widened to f32";
}

TEST(LayerStates, AWindowIsAGroupOfItsOwn) {
  const format::TestFolder files;
  write(files, kFamilies[2]);
  const model::Config config =
      model::read_config(files.path(), format::Json::parse(config_of(kFamilies[2]), "config.json"));
  const std::vector<model::CacheGroup> groups = model::cache_groups(config.state);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].state, (KvState{2, 16, 10}));
  EXPECT_EQ(groups[0].layers, (std::vector<uint32_t>{0, 2}));
  EXPECT_EQ(groups[1].state, (KvState{2, 16, 0}));
  EXPECT_EQ(groups[1].layers, (std::vector<uint32_t>{1}));
}

TEST(LayerStates, WindowsAreThoseThatTransformersTakes) {
  const auto config_with = [](const std::string& fields) {
    return model::read_config(format::Json::parse(std::string("{") + kSizes + fields + "}", "config.json"));
  };
  const auto windows = [&](const std::string& fields) {
    std::vector<uint32_t> found;
    for (const LayerState& state : config_with(fields).state)
      found.push_back(std::get<KvState>(state).window);
    return found;
  };
  using Windows = std::vector<uint32_t>;
  const std::string mistral = R"("model_type": "mistral")", smollm3 = R"("model_type": "smollm3")";
  EXPECT_EQ(windows(mistral), Windows(3, 4096));
  EXPECT_EQ(windows(mistral + R"(, "sliding_window": null)"), Windows(3, 0));
  EXPECT_EQ(windows(mistral + R"(, "sliding_window": 7)"), Windows(3, 7));
  EXPECT_NE(refusal<FileError>([&] {
              (void)config_with(mistral +
                                R"(, "layer_types": ["full_attention", "full_attention", "full_attention"])");
            }).find("layer_types"),
            std::string::npos);
  EXPECT_EQ(windows(smollm3 + R"(, "sliding_window": 7)"), Windows(3, 0)) << "it is not used";
  const std::string used = smollm3 + R"(, "sliding_window": 7, "use_sliding_window": true)";
  EXPECT_EQ(windows(used + R"(, "no_rope_layer_interval": 2)"), (Windows{0, 7, 0}));
  EXPECT_EQ(windows(used + R"(, "no_rope_layers": [0, 1, 1])"), (Windows{7, 0, 0}));
  EXPECT_EQ(windows(smollm3 + R"(, "sliding_window": 7,
                    "layer_types": ["full_attention", "full_attention", "sliding_attention"])"),
            (Windows{0, 0, 7}));
  EXPECT_EQ(refusal<FileError>([&] { (void)config_with(smollm3 + R"(, "no_rope_layers": [0, 1])"); }),
            "config.json: no_rope_layers: expected 3 or more, got 2");
}

TEST(LayerStates, AWindowNeedsNoMorePagesThanARingOfThem) {
  const format::TestFolder files;
  write(files, kFamilies[2]);
  const model::Model model = load(files.path(), 2, kThreadSanitizer);
  RunnerOptions options;
  options.capacities = {7};
  options.outputs = 7;
  ModelRunner all(model, options), ring(model, options);
  // A window of 10 positions and a step of 7 touch two pages at most.
  std::vector<uint32_t> pages(ring.cache().pages_per_slot());
  for (uint32_t i = 0; i < pages.size(); ++i) pages[i] = i % 2;
  ring.set_pages(0, 0, 0, pages);
  const std::vector<uint32_t> ids = some_ids(250);
  const std::vector<float> expected = all_logits(all, ids), logits = all_logits(ring, ids);
  ASSERT_EQ(logits.size(), expected.size());
  EXPECT_EQ(std::memcmp(logits.data(), expected.data(), logits.size() * sizeof(float)), 0);
  ring.set_pages(1, 0, 0, pages);  // not so the group that attends to everything
  const std::vector<float> wrong = all_logits(ring, ids);
  EXPECT_NE(std::memcmp(wrong.data(), expected.data(), wrong.size() * sizeof(float)), 0);
}

TEST(LayerStates, ALayerMayShareWithAnEarlierOne) {
  model::Config config;
  config.state = {KvState{2, 16}, KvState{1, 8}, SharedKvState{0}, SharedKvState{2}};
  Device device = Device::open("cpu", {});
  const model::KvCache cache(device, config, 1, 64);
  ASSERT_EQ(cache.groups().size(), 2u);
  EXPECT_EQ(cache.groups()[0].layers, (std::vector<uint32_t>{0, 2, 3}));
  EXPECT_EQ(cache.state(3), cache.state(0));
  EXPECT_EQ(cache.layer(3).memory(), cache.layer(0).memory());
  EXPECT_NE(cache.layer(1).memory(), cache.layer(0).memory());
  EXPECT_EQ(cache.bytes(), cache.layer(0).bytes() + cache.layer(1).bytes());
  EXPECT_EQ(cache.layer(1).shape(), (Shape{2, 1, 1, 64, 8}));
}

TEST(LayerStates, ACacheInF16TakesHalfTheMemory) {
  model::Config config;
  config.state = {KvState{2, 16}, KvState{1, 8, 10}};
  const auto bytes = [&](DType type) {
    Device device = Device::open(device_name(), {});
    const size_t before = device.memory().used_bytes;
    const model::KvCache cache(device, config, 3, 100, type);
    size_t sum = 0;
    for (const uint32_t layer : {0u, 1u}) {
      EXPECT_EQ(cache.layer(layer).dtype(), type);
      EXPECT_EQ(cache.layer(layer).bytes(), cache.state(layer).position_bytes(type) * 3 * 128);
      sum += cache.layer(layer).bytes();
    }
    EXPECT_EQ(cache.bytes(), sum);
    EXPECT_EQ(device.memory().used_bytes - before, sum);
    return sum;
  };
  const size_t whole = 3 * 128 * (2 * 2 * 16 + 2 * 1 * 8) * sizeof(float);
  EXPECT_EQ(bytes(DType::f32), whole);
  EXPECT_EQ(bytes(DType::f16), whole / 2);
}

TEST(LayerStates, WhatHasNoCacheIsRefused) {
  const std::vector<LayerState> later = {KvState{2, 16}, SharedKvState{1}};
  EXPECT_EQ(refusal([&] { model::cache_groups(later); }),
            "[cache] layer 1: expected to share with an earlier layer, got layer 1");
  const std::vector<LayerState> fixed = {FixedState{DType::f32, {4, 4}}};
  EXPECT_EQ(refusal([&] { model::cache_groups(fixed); }),
            "[cache] layer 0: expected keys and values, got state of a fixed size");
}

}  // namespace
}  // namespace refrain::test
