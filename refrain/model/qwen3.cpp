// Qwen3: pre-norm decoder, grouped-query attention with RMS norms on queries and keys before rope, SwiGLU.
// Source: Qwen3 Technical Report (2025); transformers' Qwen3ForCausalLM gives the reference outputs.

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 32,
                                       .hidden = 4096,
                                       .heads = 32,
                                       .intermediate = 22016,
                                       .vocab = 151936,
                                       .context_tokens = 32768,
                                       .rms_norm_eps = 1e-6,
                                       .head_dim = 128,
                                       .kv_heads = 32};

class Qwen3 final : public Decoder {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    expect_off(json, "attention_bias");
    expect_off(json, "use_sliding_window");
    read_layer_types(json, sizes.layers, {"full_attention"});
    read_rope(json, kDefaults);
    return sizes.config();
  }

  Qwen3(const format::Json& json, WeightLoader& loader)
      : Decoder(loader, {.sizes = DecoderSizes(json, kDefaults),
                         .rope = read_rope(json, kDefaults),
                         .head_norms = HeadNorms::weight}) {}
};

}  // namespace

extern constexpr Family qwen3_family = family<Qwen3>("qwen3", "Qwen3ForCausalLM");

}  // namespace refrain::model
