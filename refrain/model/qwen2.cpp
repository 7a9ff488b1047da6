// Qwen2 and Qwen2.5: pre-norm decoder, grouped-query attention with rope and with biases of queries, keys and values, to a
// window in the upper layers if at all, SwiGLU.
// Source: Qwen2 Technical Report (2024); transformers' Qwen2ForCausalLM gives the reference outputs.

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
                                       .kv_heads = 32};

class Qwen2 final : public Decoder {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    read_rope(json, kDefaults);
    Config config = sizes.config();
    // Null is no window, in place of that of a file without a word.
    const bool windows = json.boolean_or("use_sliding_window", false) &&
                         (json.has("sliding_window") || !says(json, "sliding_window"));
    const uint32_t first = json.u32_or("max_window_layers", 28);
    if (windows) {
      read_windows(
          json, config, [&](uint32_t layer) { return layer >= first; }, 4096);
    } else {
      read_layer_types(json, sizes.layers, {"full_attention"});
    }
    return config;
  }

  Qwen2(const format::Json& json, WeightLoader& loader)
      : Decoder(loader, {.sizes = DecoderSizes(json, kDefaults),
                         .rope = read_rope(json, kDefaults),
                         .attention_biases = Biases::qkv}) {}
};

}  // namespace

extern constexpr Family qwen2_family = family<Qwen2>("qwen2", "Qwen2ForCausalLM");

}  // namespace refrain::model
