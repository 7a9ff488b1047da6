// Phi-3, Phi-3.5 and Phi-4: pre-norm decoder, grouped-query attention with rope of the whole head or its beginning, to a window
// or to all, SwiGLU; matrices of one input are stored as one.
// Source: Phi-3 Technical Report (2024), LongRoPE (2024); transformers' Phi3ForCausalLM gives the reference outputs.

#include "refrain/model/decoder.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.layers = 32,
                                       .hidden = 3072,
                                       .heads = 32,
                                       .intermediate = 8192,
                                       .vocab = 32064,
                                       .context_tokens = 4096,
                                       .rms_norm_eps = 1e-5,
                                       .partial_rotation = true};

struct Settings {
  explicit Settings(const format::Json& json)
      : decoder{.sizes = DecoderSizes(json, kDefaults), .fused_projections = true},
        common(decoder.sizes.config()) {
    expect_string(json, "hidden_act", "silu");
    DecoderSizes& sizes = decoder.sizes;
    sizes.rotary_dim = read_rotary_dim(json, sizes.head_dim);
    decoder.rope = read_longrope(json, kDefaults, sizes.rotary_dim,
                                 json.u32_or("original_max_position_embeddings", 4096, 2));
    const uint32_t window = json.u32_or("sliding_window", 0, 1);
    if (window == 0) {
      expect_full_attention(json, sizes);
    } else {
      read_layer_types(json, sizes.layers, {"sliding_attention"});
    }
    for (LayerState& state : common.state) std::get<KvState>(state).window = window;
  }

  DecoderOptions decoder;
  Config common;
};

class Phi3 final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  Phi3(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family phi3_family = family<Phi3>("phi3", "Phi3ForCausalLM");

}  // namespace refrain::model
