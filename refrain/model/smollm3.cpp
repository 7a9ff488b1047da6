// SmolLM3: pre-norm decoder, grouped-query attention, without rope in each fourth layer, SwiGLU.
// Source: SmolLM3 (2025), RoPE to NoRoPE and Back Again (2025); transformers' SmolLM3ForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 36,
                                       .hidden = 2048,
                                       .heads = 16,
                                       .intermediate = 11008,
                                       .vocab = 128256,
                                       .context_tokens = 32768,
                                       .rms_norm_eps = 1e-6,
                                       .rope_theta = 2e6,
                                       .kv_heads = 4,
                                       .tied = true};

struct Settings {
  explicit Settings(const format::Json& json)
      : decoder{.sizes = DecoderSizes(json, kDefaults)}, common(decoder.sizes.config()) {
    expect_string(json, "hidden_act", "silu");
    for (const char* key : {"attention_bias", "mlp_bias"}) expect_off(json, key);
    decoder.rope = read_rope(json, kDefaults);
    if (const auto list = json.find("no_rope_layers")) {  // 1: with rope
      const std::vector<format::Json> items = list->items();
      if (items.size() < decoder.sizes.layers)
        list->fail(fmt::format("expected {} or more, got {}", decoder.sizes.layers, items.size()));
      for (uint32_t i = 0; i < decoder.sizes.layers; ++i)
        decoder.without_rope.push_back(items[i].as_u32() == 0);
    } else {
      const uint32_t period = json.u32_or("no_rope_layer_interval", 4, 1);
      for (uint32_t i = 0; i < decoder.sizes.layers; ++i)
        decoder.without_rope.push_back((i + 1) % period == 0);
    }
    const bool windows = json.boolean_or("use_sliding_window", false) && json.has("sliding_window");
    read_windows(json, common, [&](uint32_t layer) { return windows && decoder.without_rope[layer]; });
  }

  DecoderOptions decoder;
  Config common;
};

class SmolLm3 final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  SmolLm3(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family smollm3_family = family<SmolLm3>("smollm3", "SmolLM3ForCausalLM");

}  // namespace refrain::model
