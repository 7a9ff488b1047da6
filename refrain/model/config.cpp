#include "refrain/model/config.h"

#include <fmt/format.h>

#include <optional>

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

/// Refuses a field whose value would change the arithmetic in a way that is not provided.
void expect_off(const Json& config, std::string_view key) {
  if (const auto field = config.find(key); field && field->as_bool()) field->fail("expected false");
}

void check_rope_type(const Json& rope) {
  // Older files say "type", newer ones "rope_type".
  for (const std::string_view key : {"type", "rope_type"}) {
    if (const auto type = rope.find(key); type && type->as_string() != "default") {
      type->fail(fmt::format("expected \"default\", got {}", type->describe()));
    }
  }
  if (const auto factor = rope.find("partial_rotary_factor"); factor && factor->as_f64() != 1.0) {
    factor->fail(fmt::format("expected 1, got {}", factor->describe()));
  }
}

RopeConfig read_rope(const Json& config) {
  std::optional<double> theta;
  const auto take_theta = [&](const Json& from) {
    const auto field = from.find("rope_theta");
    if (!field) return;
    const double value = field->as_f64();
    if (!(value > 0)) field->fail(fmt::format("expected a positive number, got {}", field->describe()));
    if (theta && *theta != value)
      field->fail(fmt::format("contradicts rope_parameters.rope_theta {}", *theta));
    theta = value;
  };
  if (const auto parameters = config.find("rope_parameters")) {
    parameters->expect(Json::Kind::object);
    check_rope_type(*parameters);
    take_theta(*parameters);
  }
  take_theta(config);
  if (const auto scaling = config.find("rope_scaling")) check_rope_type(scaling->expect(Json::Kind::object));
  if (const auto factor = config.find("partial_rotary_factor"); factor && factor->as_f64() != 1.0) {
    factor->fail(fmt::format("expected 1, got {}", factor->describe()));
  }
  RopeConfig rope;
  if (theta) rope.theta = *theta;
  return rope;
}

/// An id, or a list of ids. Nothing when the field is absent.
std::optional<std::vector<uint32_t>> read_ids(const Json& config, std::string_view key) {
  const auto field = config.find(key);
  if (!field) return std::nullopt;
  std::vector<uint32_t> ids;
  if (field->is_array()) {
    for (const Json& item : field->items()) ids.push_back(item.as_u32());
  } else {
    ids.push_back(field->as_u32());
  }
  return ids;
}

}  // namespace

Config read_config(const std::filesystem::path& folder, const Json& json) {
  json.expect(Json::Kind::object);
  Config config;
  config.model_type = json.string("model_type");
  if (config.model_type != "qwen3") {
    json.at("model_type")
        .fail(fmt::format("expected one of: qwen3; got {}", json.at("model_type").describe()));
  }
  if (json.has("model_file")) {
    json.at("model_file").fail("the model brings its own Python code, which is never run");
  }
  config.layers = json.u32("num_hidden_layers", 1, kMaxLayers);
  config.hidden = json.u32("hidden_size", 1, kMaxWidth);
  config.intermediate = json.u32("intermediate_size", 1, kMaxWidth);
  config.heads = json.u32("num_attention_heads", 1, kMaxHeads);
  config.kv_heads = json.u32_or("num_key_value_heads", config.heads, 1, kMaxHeads);
  if (config.heads % config.kv_heads != 0) {
    json.at("num_key_value_heads")
        .fail(fmt::format("expected a divisor of num_attention_heads {}, got {}", config.heads,
                          config.kv_heads));
  }
  config.head_dim = json.u32_or("head_dim", config.hidden / config.heads, 1, kMaxHeadDim);
  if (config.head_dim % 2 != 0 || config.head_dim == 0) {
    json.fail(fmt::format("head_dim: expected an even number, got {}", config.head_dim));
  }
  config.vocab = json.u32("vocab_size", 1, kMaxVocab);
  config.context_tokens = json.u32("max_position_embeddings", 1, kMaxContext);
  const double eps = json.f64("rms_norm_eps");
  if (!(eps > 0 && eps < 1))
    json.at("rms_norm_eps").fail(fmt::format("expected a number in (0, 1), got {}", eps));
  config.rms_norm_eps = static_cast<float>(eps);
  if (const auto act = json.find("hidden_act"); act && act->as_string() != "silu") {
    act->fail(fmt::format("expected \"silu\", got {}", act->describe()));
  }
  expect_off(json, "attention_bias");
  expect_off(json, "use_sliding_window");
  if (const auto types = json.find("layer_types")) {
    for (const Json& type : types->items()) {
      if (type.as_string() != "full_attention") {
        type.fail(fmt::format("expected \"full_attention\", got {}", type.describe()));
      }
    }
  }
  config.rope = read_rope(json);
  config.tied_embeddings = json.boolean_or("tie_word_embeddings", false);

  if (auto ids = read_ids(json, "eos_token_id")) config.eos_ids = std::move(*ids);
  const std::filesystem::path generation = folder / "generation_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(generation, ignored)) {
    const Json file = Json::load(generation);
    file.expect(Json::Kind::object);
    if (auto ids = read_ids(file, "eos_token_id")) config.eos_ids = std::move(*ids);
  }
  return config;
}

}  // namespace refrain::model
