// Ministral 3: Mistral whose queries grow with the position, so that attention to a long context stays sharp.
// Source: Ministral 3 (2025), Scalable-Softmax Is Superior for Attention (2025); transformers' Ministral3ForCausalLM gives the
// reference outputs.

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

struct Settings {
  explicit Settings(const format::Json& json)
      // Null is hidden / heads, in place of the size of a file without a word.
      : decoder{.sizes = DecoderSizes(json, {.head_dim = says(json, "head_dim") ? 0u : 128u, .kv_heads = 8}),
                .rope = read_rope(json)},
        common(decoder.sizes.config()) {
    expect_string(json, "hidden_act", "silu");
    const uint32_t window = json.u32_or("sliding_window", 0, 1);
    if (window == 0) {
      expect_full_attention(json, decoder.sizes);
    } else {
      read_layer_types(json, decoder.sizes.layers, {"sliding_attention"});
    }
    for (LayerState& state : common.state) std::get<KvState>(state).window = window;
    // The other block, if there is one, says the same of rope, but may be silent on this.
    const auto scaling = find_block(json, "rope_scaling");
    const format::Json block = scaling ? *scaling : json.object("rope_parameters");
    decoder.query_growth = {static_cast<float>(block.f64("llama_4_scaling_beta")),
                            block.u32("original_max_position_embeddings", 1)};
  }

  DecoderOptions decoder;
  Config common;
};

class Ministral3 final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  Ministral3(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family ministral3_family = family<Ministral3>("ministral3", "Ministral3ForCausalLM");

}  // namespace refrain::model
