// Mistral: pre-norm decoder, grouped-query attention with rope, to a window in the first releases, SwiGLU.
// Source: Mistral 7B (2023); transformers' MistralForCausalLM gives the reference outputs.

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 32,
                                       .hidden = 4096,
                                       .heads = 32,
                                       .intermediate = 14336,
                                       .vocab = 32000,
                                       .context_tokens = 131072,
                                       .rms_norm_eps = 1e-6,
                                       .kv_heads = 8};

class Mistral final : public Decoder {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    read_rope(json, kDefaults);
    Config config = sizes.config();
    // Later releases say null, which is no window; the first ones' is that of a file without a word.
    const uint32_t window = json.u32_or("sliding_window", says(json, "sliding_window") ? 0 : 4096, 1);
    read_layer_types(json, sizes.layers, {window != 0 ? "sliding_attention" : "full_attention"});
    for (LayerState& state : config.state) std::get<KvState>(state).window = window;
    return config;
  }

  Mistral(const format::Json& json, WeightLoader& loader)
      : Decoder(loader, {.sizes = DecoderSizes(json, kDefaults), .rope = read_rope(json, kDefaults)}) {}
};

}  // namespace

extern constexpr Family mistral_family = family<Mistral>("mistral", "MistralForCausalLM");

}  // namespace refrain::model
