// OLMo 3: as OLMo 2, but three of four layers attend to a window, and rope is stretched, if at all, in the others alone.
// Source: Olmo 3 (2025); transformers' Olmo3ForCausalLM gives the reference outputs.

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

struct Settings {
  explicit Settings(const format::Json& json)
      : decoder{.sizes = DecoderSizes(json, kDefaults),
                .norms = Norms::behind,
                .head_norms = HeadNorms::all_heads},
        common(decoder.sizes.config()) {
    expect_string(json, "hidden_act", "silu");
    expect_off(json, "attention_bias");
    read_windows(
        json, common, [](uint32_t layer) { return layer % 4 != 3; }, 4096);
    // A block for each type of layer; older files have one base frequency, and a scaling for full attention.
    decoder.rope = read_rope(json, kDefaults, {find_rope_of(json, "full_attention"), find_full_scaling(json)},
                             json.find("rope_theta"), kTheta);
    decoder.window_rope =
        read_rope(json, kDefaults, {find_rope_of(json, "sliding_attention")}, std::nullopt, kTheta);
  }

  // Of windows whatever older files say: transformers gives those the default.
  static constexpr double kTheta = 5e5;
  DecoderOptions decoder;
  Config common;
};

class Olmo3 final : public Decoder {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  Olmo3(const format::Json& json, WeightLoader& loader) : Decoder(loader, Settings(json).decoder) {}
};

}  // namespace

extern constexpr Family olmo3_family = family<Olmo3>("olmo3", "Olmo3ForCausalLM");

}  // namespace refrain::model
