// OLMo 2: norms behind both halves of a layer in place of before them, norms of whole queries and keys before rope, SwiGLU.
// Source: 2 OLMo 2 Furious (2024); transformers' Olmo2ForCausalLM gives the reference outputs.

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 32,
                                       .hidden = 4096,
                                       .heads = 32,
                                       .intermediate = 11008,
                                       .vocab = 50304,
                                       .context_tokens = 2048,
                                       .rms_norm_eps = 1e-5};

class Olmo2 final : public Decoder {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    expect_off(json, "attention_bias");
    expect_full_attention(json, sizes);
    read_rope(json, kDefaults);
    return sizes.config();
  }

  Olmo2(const format::Json& json, WeightLoader& loader)
      : Decoder(loader, {.sizes = DecoderSizes(json, kDefaults),
                         .rope = read_rope(json, kDefaults),
                         .norms = Norms::behind,
                         .head_norms = HeadNorms::all_heads}) {}
};

}  // namespace

extern constexpr Family olmo2_family = family<Olmo2>("olmo2", "Olmo2ForCausalLM");

}  // namespace refrain::model
