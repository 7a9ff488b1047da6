// Ministral 3: Mistral whose queries grow with the position, so that attention to a long context stays sharp.
// Source: Ministral 3 (2025), Scalable-Softmax Is Superior for Attention (2025); transformers' Ministral3ForCausalLM gives the
// reference outputs.

#include <fmt/format.h>

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

using format::Json;

constexpr std::string_view kOriginal = "original_max_position_embeddings";
constexpr std::string_view kGrowth = "llama_4_scaling_beta";

DecoderDefaults defaults_of(const Json& json) {
  return {.layers = 34,
          .hidden = 4096,
          .heads = 32,
          .intermediate = 14336,
          .vocab = 131072,
          .context_tokens = 262144,
          .rms_norm_eps = 1e-5,
          // Null is hidden / heads, in place of the size of a file without a word.
          .head_dim = says(json, "head_dim") ? 0u : 128u,
          .kv_heads = 8};
}

/// What stands for a block on rope where the file has none.
RopeSettings default_rope() {
  RopeSettings rope;
  rope.theta = 1e6;
  rope.scaling = RopeSettings::Scaling::yarn;
  rope.factor = 16;
  rope.original_context_tokens = 16384;
  return rope;
}
constexpr double kDefaultGrowth = 0.1;

/// The block that counts of those on rope; nothing where there is none.
std::optional<Json> find_rope(const Json& json) {
  auto scaling = find_block(json, "rope_scaling");
  // One that is empty is not as good as none: it says nothing of how queries grow.
  return scaling ? scaling : json.find("rope_parameters");
}

/// Refuses a field that says another thing than what counts.
void expect_value(const Json& from, std::string_view key, double value, std::string_view why) {
  if (const auto field = from.find(key); field && field->as_f64() != value)
    field->fail(fmt::format("expected {} {}, got {}", value, why, field->describe()));
}

struct Settings {
  explicit Settings(const Json& json)
      : decoder{.sizes = DecoderSizes(json, defaults_of(json))}, common(decoder.sizes.config()) {
    expect_string(json, "hidden_act", "silu");
    const uint32_t window = json.u32_or("sliding_window", 0, 1);
    if (window == 0) {
      expect_full_attention(json, decoder.sizes);
    } else {
      read_layer_types(json, decoder.sizes.layers, {"sliding_attention"});
    }
    for (LayerState& state : common.state) std::get<KvState>(state).window = window;
    read_rope_and_growth(json);
  }

  void read_rope_and_growth(const Json& json) {
    const auto block = find_rope(json);
    double growth = kDefaultGrowth;
    if (block) {
      decoder.rope = read_rope(json, defaults_of(json));
      growth = block->f64(kGrowth);
    } else {
      decoder.rope = default_rope();
      expect_value(json, "rope_theta", decoder.rope.theta, "where there is no block on rope");
      expect_value(json, kOriginal, decoder.rope.original_context_tokens, "where there is no block on rope");
    }
    uint32_t original = decoder.rope.original_context_tokens;
    // The types of rope that have no use for it still have it in the block, and the others take the context in its place.
    if (!decoder.rope.needs_original()) original = block->u32(kOriginal, 1);
    if (original == 0) original = decoder.sizes.context_tokens;
    if (const auto other = find_block(json, "rope_parameters")) {
      expect_value(*other, kGrowth, growth, "as in rope_scaling");
      expect_value(*other, kOriginal, original, "as in rope_scaling");
    }
    decoder.query_growth = {static_cast<float>(growth), original};
  }

  DecoderOptions decoder;
  Config common;
};

class Ministral3 final : public Decoder {
 public:
  static Config read(const Json& json) { return Settings(json).common; }

  Ministral3(const Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family ministral3_family = family<Ministral3>("ministral3", "Ministral3ForCausalLM");

}  // namespace refrain::model
