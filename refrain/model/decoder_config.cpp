#include "refrain/model/decoder_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace refrain::model {
namespace {

using format::Json;

// Far above any published model, far below where sizes could overflow.
constexpr uint32_t kMaxLayers = 4096;
constexpr uint32_t kMaxWidth = 1u << 20;
constexpr uint32_t kMaxHeads = 4096;
constexpr uint32_t kMaxHeadDim = 4096;
constexpr uint32_t kMaxVocab = 1u << 24;
constexpr uint32_t kMaxContext = 1u << 28;

constexpr std::string_view kKvHeads = "num_key_value_heads";

/// An integer in [1, most]. Null is none.
uint32_t read_size(const Json& json, std::string_view key, uint32_t fallback, uint32_t most) {
  return fallback != 0 && !says(json, key) ? fallback : json.u32(key, 1, most);
}

double read_eps(const Json& json, double fallback) {
  constexpr std::string_view kKey = "rms_norm_eps";
  return fallback != 0 && !says(json, kKey) ? fallback : json.f64(kKey);
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

}  // namespace

uint32_t read_context_tokens(const Json& config, const DecoderDefaults& defaults) {
  return read_size(config, "max_position_embeddings", defaults.context_tokens, kMaxContext);
}

bool says(const Json& config, std::string_view key) {
  return std::ranges::find(config.keys(), key) != config.keys().end();
}

DecoderSizes::DecoderSizes(const Json& json, const DecoderDefaults& defaults)
    : layers(read_size(json, "num_hidden_layers", defaults.layers, kMaxLayers)),
      hidden(read_size(json, "hidden_size", defaults.hidden, kMaxWidth)),
      heads(read_size(json, "num_attention_heads", defaults.heads, kMaxHeads)),
      kv_heads(read_kv_heads(json, heads, defaults.kv_heads)),
      head_dim(json.u32_or("head_dim", defaults.head_dim != 0 ? defaults.head_dim : hidden / heads, 1,
                           kMaxHeadDim)),
      rotary_dim(head_dim),
      intermediate(read_size(json, "intermediate_size", defaults.intermediate, kMaxWidth)),
      vocab(read_size(json, "vocab_size", defaults.vocab, kMaxVocab)),
      context_tokens(read_context_tokens(json, defaults)),
      rms_norm_eps(static_cast<float>(read_eps(json, defaults.rms_norm_eps))),
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
  if (!defaults.partial_rotation) expect_whole_rotation(json);
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

double read_positive(const Json& field) {
  const double value = field.as_f64();
  if (!(value > 0)) field.fail(fmt::format("expected a positive number, got {}", field.describe()));
  return value;
}

void expect_off(const Json& config, std::string_view key) {
  if (const auto field = config.find(key); field && field->as_bool()) field->fail("expected false, got true");
}

void expect_absent(const Json& config, std::string_view key) {
  if (const auto field = config.find(key)) {
    field->fail(fmt::format("expected none, got {}", field->describe()));
  }
}

void expect_whole_rotation(const Json& from) {
  if (const auto factor = from.find("partial_rotary_factor"); factor && factor->as_f64() != 1.0) {
    factor->fail(fmt::format("expected 1, got {}", factor->describe()));
  }
}

void expect_string(const Json& config, std::string_view key, std::string_view value) {
  if (const auto field = config.find(key); field && field->as_string() != value) {
    field->fail(fmt::format("expected \"{}\", got {}", value, field->describe()));
  }
}

}  // namespace refrain::model
