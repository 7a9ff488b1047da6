// Gemma 2: norms before and after both halves of a layer, that scale by 1 + weight; each other layer attends to a window;
// scores and logits are kept within caps; gelu in the MLP.
// Source: Gemma 2 (2024); transformers' Gemma2ForCausalLM gives the reference outputs.
#include <cmath>

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 26,
                                       .hidden = 2304,
                                       .heads = 8,
                                       .intermediate = 9216,
                                       .vocab = 256000,
                                       .context_tokens = 8192,
                                       .rms_norm_eps = 1e-6,
                                       .head_dim = 256,
                                       .kv_heads = 4,
                                       .tied = true};

struct Settings {
  explicit Settings(const format::Json& json)
      : decoder{.sizes = DecoderSizes(json, kDefaults),
                .rope = read_rope(json, kDefaults),
                .norms = Norms::around,
                .norms_plus = 1,
                .activation = Activation::gelu_tanh,
                .rounds_embedding_scale = true,
                .score_scale =
                    static_cast<float>(1 / std::sqrt(json.u32_or("query_pre_attn_scalar", 256, 1))),
                .score_cap = read_cap(json, "attn_logit_softcapping", 50),
                .logit_cap = read_cap(json, "final_logit_softcapping", 30)},
        common(decoder.sizes.config()) {
    decoder.embedding_scale = std::sqrt(static_cast<float>(decoder.sizes.hidden));
    expect_string(json, "hidden_activation", "gelu_pytorch_tanh");
    expect_off(json, "attention_bias");
    read_windows(
        json, common, [](uint32_t layer) { return layer % 2 == 0; }, 4096);
  }

  /// Null is no cap, in place of that of a file without a word.
  static float read_cap(const format::Json& json, const char* key, float fallback) {
    const auto field = json.find(key);
    if (!field) return says(json, key) ? 0 : fallback;
    const auto cap = static_cast<float>(field->as_f64());
    if (!(cap > 0) || std::isinf(cap)) field->fail("expected a number above 0, got " + field->describe());
    return cap;
  }

  DecoderOptions decoder;
  Config common;
};

class Gemma2 final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  Gemma2(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family gemma2_family = family<Gemma2>("gemma2", "Gemma2ForCausalLM");

}  // namespace refrain::model
