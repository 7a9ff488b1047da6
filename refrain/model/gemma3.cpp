// Gemma 3, text alone: norms before and after both halves of a layer, that scale by 1 + weight; some layers attend
// to a window, with a rope of their own; gelu in the MLP.
// Source: Gemma 3 Technical Report (2025); transformers' Gemma3ForCausalLM gives the reference outputs.
#include <cmath>

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 26,
                                       .hidden = 2304,
                                       .heads = 8,
                                       .intermediate = 9216,
                                       .vocab = 262208,
                                       .context_tokens = 131072,
                                       .rms_norm_eps = 1e-6,
                                       .head_dim = 256,
                                       .kv_heads = 4,
                                       .tied = true};

struct Settings {
  explicit Settings(const format::Json& json)
      : decoder{.sizes = DecoderSizes(json, kDefaults),
                .norms = Norms::around,
                .norms_plus = 1,
                .head_norms = HeadNorms::one_plus_weight,
                .activation = Activation::gelu_tanh,
                .rounds_embedding_scale = true},
        common(decoder.sizes.config()) {
    decoder.embedding_scale = std::sqrt(static_cast<float>(decoder.sizes.hidden));
    expect_string(json, "hidden_activation", "gelu_pytorch_tanh");
    expect_off(json, "attention_bias");
    for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) expect_absent(json, key);
    decoder.score_scale = static_cast<float>(1 / std::sqrt(json.u32_or("query_pre_attn_scalar", 256, 1)));

    if (says(json, "sliding_window")) json.u32("sliding_window", 1);      // null is none, needed or not
    const uint32_t period = json.u32_or("sliding_window_pattern", 6, 1);  // of older files
    read_windows(
        json, common, [&](uint32_t layer) { return (layer + 1) % period != 0; }, 4096);
    // A block for each type of layer; older files have base frequencies, and a scaling for full attention.
    decoder.rope = read_rope(json, kDefaults, {find_rope_of(json, "full_attention"), find_full_scaling(json)},
                             json.find("rope_theta"), 1e6);
    decoder.window_rope = read_rope(json, kDefaults, {find_rope_of(json, "sliding_attention")},
                                    json.find("rope_local_base_freq"), 1e4);
  }

  DecoderOptions decoder;
  Config common;
};

class Gemma3 final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  Gemma3(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family gemma3_family = family<Gemma3>("gemma3_text", "Gemma3ForCausalLM");

}  // namespace refrain::model
