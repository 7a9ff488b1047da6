// Mistral: pre-norm decoder, grouped-query attention with rope, to a window in the first releases, SwiGLU.
// Source: Mistral 7B (2023); transformers' MistralForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "refrain/model/blocks.h"

namespace refrain::model {
namespace {

constexpr DecoderDefaults kDefaults = {.kv_heads = 8};

struct Layer {
  Weight attention_norm, mlp_norm;  // [hidden]
  AttentionWeights attention;
  MlpWeights mlp;
};

class Mistral final : public Architecture {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json, kDefaults);
    expect_string(json, "hidden_act", "silu");
    read_rope(json);
    Config config = sizes.config();
    // Later releases say null, which is no window; the first ones' is that of a file without a word.
    const bool said = std::ranges::find(json.keys(), "sliding_window") != json.keys().end();
    const uint32_t window = json.u32_or("sliding_window", said ? 0 : 4096, 1);
    read_layer_types(json, sizes.layers, {window != 0 ? "sliding_attention" : "full_attention"});
    for (LayerState& state : config.state) std::get<KvState>(state).window = window;
    return config;
  }

  Mistral(const format::Json& json, WeightLoader& loader)
      : sizes_(json, kDefaults),
        embedding_(load_embedding(loader, sizes_)),
        frequencies_(load_rope(loader, read_rope(json), sizes_)) {
    for (uint32_t i = 0; i < sizes_.layers; ++i) {
      const std::string prefix = fmt::format("model.layers.{}.", i);
      const auto norm = [&](const char* n) { return load_norm(loader, prefix + n, sizes_); };
      layers_.push_back({.attention_norm = norm("input_layernorm"),
                         .mlp_norm = norm("post_attention_layernorm"),
                         .attention = load_attention(loader, prefix + "self_attn.", sizes_),
                         .mlp = load_mlp(loader, prefix + "mlp.", sizes_)});
    }
    norm_ = load_norm(loader, "model.norm", sizes_);
    head_ = load_head(loader, sizes_, embedding_);
  }

  void record(CommandEncoder& encoder, const Forward& forward) const override {
    ForwardPass pass(encoder, forward, sizes_.rms_norm_eps);
    const float scale = 1.0f / std::sqrt(static_cast<float>(sizes_.head_dim));
    pass.label("embedding");
    Value x = pass.embed(embedding_);
    for (uint32_t i = 0; i < sizes_.layers; ++i) {
      const Layer& w = layers_[i];
      pass.layer(i);
      x = x + attention(norm(x, w.attention_norm), w.attention, {i, frequencies_, scale});
      x = x + mlp(norm(x, w.mlp_norm), w.mlp);
    }
    pass.label("head");
    pass.logits(norm(pass.wanted(x), norm_), head_);
  }

 private:
  DecoderSizes sizes_;
  Weight embedding_;    // [vocab, hidden]
  Weight frequencies_;  // [head_dim / 2]
  std::vector<Layer> layers_;
  Weight norm_;  // [hidden]
  Weight head_;  // [vocab, hidden]
};

}  // namespace

extern constexpr Family mistral_family = family<Mistral>("mistral", "MistralForCausalLM");

}  // namespace refrain::model
