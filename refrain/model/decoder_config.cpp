#include "refrain/model/decoder_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace refrain::model {
namespace {

using format::Json;
using Scaling = RopeSettings::Scaling;

// Far above any published model, far below where sizes could overflow.
constexpr uint32_t kMaxLayers = 4096;
constexpr uint32_t kMaxWidth = 1u << 20;
constexpr uint32_t kMaxHeads = 4096;
constexpr uint32_t kMaxHeadDim = 4096;
constexpr uint32_t kMaxVocab = 1u << 24;
constexpr uint32_t kMaxContext = 1u << 28;

constexpr std::string_view kOriginal = "original_max_position_embeddings";
constexpr std::string_view kKvHeads = "num_key_value_heads";

double read_positive(const Json& field) {
  const double value = field.as_f64();
  if (!(value > 0)) field.fail(fmt::format("expected a positive number, got {}", field.describe()));
  return value;
}

uint32_t read_kv_heads(const Json& json, uint32_t heads, uint32_t fallback) {
  const bool absent = !says(json, kKvHeads);
  const uint32_t kv_heads = json.u32_or(kKvHeads, absent && fallback != 0 ? fallback : heads, 1, kMaxHeads);
  if (heads % kv_heads != 0) {
    const std::string got =
        absent ? fmt::format("none, which stands for {}", kv_heads) : std::to_string(kv_heads);
    json.fail(fmt::format("{}: expected a divisor of num_attention_heads {}, got {}", kKvHeads, heads, got));
  }
  return kv_heads;
}

void expect_whole_rotation(const Json& from) {
  if (const auto factor = from.find("partial_rotary_factor"); factor && factor->as_f64() != 1.0) {
    factor->fail(fmt::format("expected 1, got {}", factor->describe()));
  }
}

Scaling read_scaling(const Json& block) {
  std::optional<Scaling> scaling;
  // Older files say "type", newer ones "rope_type".
  for (const std::string_view key : {"type", "rope_type"}) {
    const auto type = block.find(key);
    if (!type) continue;
    const std::string& name = type->as_string();
    if (name != "default" && name != "linear" && name != "llama3") {
      type->fail(fmt::format("expected \"default\", \"linear\" or \"llama3\", got {}", type->describe()));
    }
    const Scaling found = name == "linear"   ? Scaling::linear
                          : name == "llama3" ? Scaling::llama3
                                             : Scaling::none;
    if (scaling && *scaling != found) type->fail("contradicts \"type\" beside it");
    scaling = found;
  }
  return scaling.value_or(Scaling::none);
}

RopeSettings read_block(const Json& block) {
  for (const std::string& key : block.expect(Json::Kind::object).keys()) {
    if (const Json member = block.at(key); member.is_object()) {
      member.fail("expected settings for all layers alike, got an object");
    }
  }
  expect_whole_rotation(block);
  RopeSettings rope;
  rope.scaling = read_scaling(block);
  if (rope.scaling != Scaling::none) rope.factor = read_positive(block.at("factor"));
  if (rope.scaling == Scaling::llama3) {
    rope.low_freq_factor = read_positive(block.at("low_freq_factor"));
    rope.high_freq_factor = read_positive(block.at("high_freq_factor"));
    rope.original_context_tokens = block.u32(kOriginal, 1, kMaxContext);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      block.at("high_freq_factor")
          .fail(fmt::format("expected more than low_freq_factor {}, got {}", rope.low_freq_factor,
                            rope.high_freq_factor));
    }
  }
  return rope;
}

}  // namespace

bool says(const Json& config, std::string_view key) {
  return std::ranges::find(config.keys(), key) != config.keys().end();
}

std::optional<Json> find_block(const Json& config, std::string_view key) {
  auto block = config.find(key);
  if (block && block->expect(Json::Kind::object).size() == 0) block.reset();
  return block;
}

DecoderSizes::DecoderSizes(const Json& json, const DecoderDefaults& defaults)
    : layers(json.u32("num_hidden_layers", 1, kMaxLayers)),
      hidden(json.u32("hidden_size", 1, kMaxWidth)),
      heads(json.u32("num_attention_heads", 1, kMaxHeads)),
      kv_heads(read_kv_heads(json, heads, defaults.kv_heads)),
      head_dim(json.u32_or("head_dim", defaults.head_dim != 0 ? defaults.head_dim : hidden / heads, 1,
                           kMaxHeadDim)),
      intermediate(json.u32("intermediate_size", 1, kMaxWidth)),
      vocab(json.u32("vocab_size", 1, kMaxVocab)),
      context_tokens(json.u32("max_position_embeddings", 1, kMaxContext)),
      rms_norm_eps(static_cast<float>(json.f64("rms_norm_eps"))),
      tied_embeddings(json.boolean_or("tie_word_embeddings", defaults.tied)) {
  if (head_dim % 2 != 0 || head_dim == 0) {
    json.fail(fmt::format("head_dim: expected an even number, got {}", head_dim));
  }
  if (!(rms_norm_eps > 0 && rms_norm_eps < 1)) {
    json.at("rms_norm_eps").fail(fmt::format("expected a number in (0, 1), got {}", rms_norm_eps));
  }
  // These change what any decoder computes.
  for (const char* key : {"use_bidirectional_attention", "is_encoder_decoder"}) expect_off(json, key);
  if (const auto causal = json.find("is_causal"); causal && !causal->as_bool()) {
    causal->fail("expected true, got false");
  }
  if (const auto layers_differ = find_block(json, "per_layer_config")) {
    layers_differ->fail("expected layers that are alike, got settings of some");
  }
  expect_whole_rotation(json);
}

Config DecoderSizes::config() const {
  Config config;
  config.vocab = vocab;
  config.context_tokens = context_tokens;
  config.state.assign(layers, KvState{kv_heads, head_dim});
  config.facts = {
      {"hidden", fmt::format("{}, MLP {}", hidden, intermediate)},
      {"heads", fmt::format("{} of {} for queries, {} for keys and values", heads, head_dim, kv_heads)},
      {"head", tied_embeddings ? "the embedding" : "of its own"},
  };
  return config;
}

RopeSettings read_rope(std::initializer_list<std::optional<Json>> blocks, const std::optional<Json>& theta,
                       double fallback) {
  std::optional<RopeSettings> rope;
  std::optional<double> found;
  const auto take_theta = [&](const std::optional<Json>& field) {
    if (!field) return;
    const double value = read_positive(*field);
    if (found && *found != value) field->fail(fmt::format("expected {} as elsewhere, got {}", *found, value));
    found = value;
  };
  for (const std::optional<Json>& block : blocks) {
    if (!block) continue;
    const RopeSettings read = read_block(*block);
    if (rope && *rope != read) block->fail("contradicts the other block on rope");
    rope = read;
    take_theta(block->find("rope_theta"));
  }
  take_theta(theta);
  RopeSettings result = rope.value_or(RopeSettings{});
  result.theta = found.value_or(fallback);
  return result;
}

RopeSettings read_rope(const Json& config) {
  const auto parameters = find_block(config, "rope_parameters"), scaling = find_block(config, "rope_scaling");
  const RopeSettings rope = read_rope({parameters, scaling}, config.find("rope_theta"), 10000.0);
  // transformers takes rope_scaling alone where both are there.
  if (parameters && scaling && parameters->has("rope_theta") && !scaling->has("rope_theta") &&
      !config.has("rope_theta")) {
    scaling->fail("expected rope_theta as in rope_parameters, got none");
  }
  // It says nothing in place of one in the block, but is not to say another thing.
  const auto original = config.find(kOriginal);
  if (original && rope.scaling == Scaling::llama3 && original->as_u32() != rope.original_context_tokens) {
    original->fail(fmt::format("expected {} as in the block on rope, got {}", rope.original_context_tokens,
                               original->describe()));
  }
  return rope;
}

std::vector<float> rope_frequencies(const RopeSettings& rope, uint32_t head_dim) {
  std::vector<float> frequencies(head_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double whole = static_cast<double>(
        1.0f / static_cast<float>(std::pow(rope.theta, 2.0 * static_cast<double>(i) / head_dim)));
    const double divided = whole / rope.factor;
    const double turns = rope.original_context_tokens * whole / (2 * std::numbers::pi);
    // Of the frequency as it was.
    const double share =
        std::clamp((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
    frequencies[i] = static_cast<float>((1 - share) * divided + share * whole);
  }
  return frequencies;
}

std::optional<std::vector<std::string>> read_layer_types(const Json& config, uint32_t layers,
                                                         std::initializer_list<std::string_view> known) {
  const auto field = config.find("layer_types");
  if (!field) return std::nullopt;
  std::vector<std::string> types;
  for (const Json& type : field->items()) {
    if (std::ranges::find(known, type.as_string()) == known.end()) {
      type.fail(fmt::format("expected \"{}\", got {}", fmt::join(known, "\" or \""), type.describe()));
    }
    types.push_back(type.as_string());
  }
  if (types.size() != layers) {
    field->fail(fmt::format("expected one for each of {} layers, got {}", layers, types.size()));
  }
  return types;
}

void read_windows(const Json& json, Config& config, const std::function<bool(uint32_t)>& slides,
                  uint32_t fallback) {
  const auto layers = static_cast<uint32_t>(config.state.size());
  const auto types = read_layer_types(json, layers, {"sliding_attention", "full_attention"});
  for (uint32_t i = 0; i < layers; ++i) {
    if (types ? (*types)[i] == "full_attention" : !slides(i)) continue;
    const bool said = fallback == 0 || says(json, "sliding_window");
    std::get<KvState>(config.state[i]).window = said ? json.u32("sliding_window", 1) : fallback;
  }
}

void expect_full_attention(const Json& json, const DecoderSizes& sizes) {
  if (read_layer_types(json, sizes.layers, {"full_attention"})) return;
  // transformers' cache then keeps so many positions of each layer and no more.
  for (const char* key : {"sliding_window", "attention_chunk_size"}) {
    if (json.u32_or(key, sizes.context_tokens) < sizes.context_tokens) expect_absent(json, key);
  }
}

void expect_off(const Json& config, std::string_view key) {
  if (const auto field = config.find(key); field && field->as_bool()) field->fail("expected false, got true");
}

void expect_absent(const Json& config, std::string_view key) {
  if (const auto field = config.find(key)) {
    field->fail(fmt::format("expected none, got {}", field->describe()));
  }
}

void expect_string(const Json& config, std::string_view key, std::string_view value) {
  if (const auto field = config.find(key); field && field->as_string() != value) {
    field->fail(fmt::format("expected \"{}\", got {}", value, field->describe()));
  }
}

}  // namespace refrain::model
