// Llama 3: pre-norm decoder, grouped-query attention with rope whose long waves may be slowed down, SwiGLU.
// Source: The Llama 3 Herd of Models (2024); transformers' LlamaForCausalLM gives the reference outputs.

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

class Llama final : public Decoder {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    expect_off(json, "attention_bias");
    expect_off(json, "mlp_bias");
    expect_full_attention(json, sizes);
    read_rope(json, kDefaults);
    return sizes.config();
  }

  Llama(const format::Json& json, WeightLoader& loader)
      : Decoder(loader, {.sizes = DecoderSizes(json, kDefaults), .rope = read_rope(json, kDefaults)}) {}
};

}  // namespace

extern constexpr Family llama_family = family<Llama>("llama", "LlamaForCausalLM");

}  // namespace refrain::model
