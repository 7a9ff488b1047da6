// Granite, dense: pre-norm decoder, grouped-query attention with rope, SwiGLU; embeddings, scores, what is added to the residual
// stream and logits are multiplied by constants.
// Source: Granite 3.0 Language Models (2024); transformers' GraniteForCausalLM gives the reference outputs.

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 32,
                                       .hidden = 4096,
                                       .heads = 32,
                                       .intermediate = 11008,
                                       .vocab = 32000,
                                       .context_tokens = 2048,
                                       .rms_norm_eps = 1e-6};

struct Settings {
  explicit Settings(const format::Json& json)
      : decoder{.sizes = DecoderSizes(json, kDefaults),
                .rope = read_rope(json, kDefaults),
                .attention_biases = json.boolean_or("attention_bias", false) ? Biases::all : Biases::none,
                .mlp_biases = json.boolean_or("mlp_bias", false),
                .score_scale = multiplier(json, "attention_multiplier"),
                .logit_scale = 1 / multiplier(json, "logits_scaling")} {
    expect_string(json, "hidden_act", "silu");
    expect_full_attention(json, decoder.sizes);
    // The stream is kept divided by what all but the embedding is multiplied by. It is only read by norms, which do not
    // see a factor, but for their eps.
    const float residual = multiplier(json, "residual_multiplier");
    decoder.embedding_scale = multiplier(json, "embedding_multiplier") / residual;
    decoder.sizes.rms_norm_eps /= residual * residual;
  }

  static float multiplier(const format::Json& json, const char* key) {
    const auto field = json.find(key);
    if (!field) return 1;
    const auto value = static_cast<float>(field->as_f64());
    // So far from 1 that neither its square nor its reciprocal leaves the range of floats.
    if (!(value > 1e-9f && value < 1e9f))
      field->fail("expected a number in (1e-9, 1e9), got " + field->describe());
    return value;
  }

  DecoderOptions decoder;
};

class Granite final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).decoder.sizes.config(); }

  Granite(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family granite_family = family<Granite>("granite", "GraniteForCausalLM");

}  // namespace refrain::model
