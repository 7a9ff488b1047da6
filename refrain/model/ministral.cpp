// Ministral: Mistral whose layers attend to a window or to all, each as the file says.
// Source: Ministral 8B (2024); transformers' MinistralForCausalLM gives the reference outputs.

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

class Ministral final : public Decoder {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    read_rope(json, kDefaults);
    Config config = sizes.config();
    // Null is no window, in place of that of a file without a word.
    const bool windows = json.has("sliding_window") || !says(json, "sliding_window");
    read_windows(
        json, config, [&](uint32_t) { return windows; }, 4096);
    return config;
  }

  Ministral(const format::Json& json, WeightLoader& loader)
      : Decoder(loader, {.sizes = DecoderSizes(json, kDefaults), .rope = read_rope(json, kDefaults)}) {}
};

}  // namespace

extern constexpr Family ministral_family = family<Ministral>("ministral", "MinistralForCausalLM");

}  // namespace refrain::model
