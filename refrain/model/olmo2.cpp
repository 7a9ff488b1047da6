// OLMo 2: norms behind both halves of a layer in place of before them, norms of whole queries and keys before rope, SwiGLU.
// Source: 2 OLMo 2 Furious (2024); transformers' Olmo2ForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include <cmath>

#include "refrain/model/blocks.h"

namespace refrain::model {
namespace {

struct Layer {
  Weight attention_end_norm, mlp_end_norm;  // [hidden]
  AttentionWeights attention;
  MlpWeights mlp;
};

class Olmo2 final : public Architecture {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json);
    expect_string(json, "hidden_act", "silu");
    expect_off(json, "attention_bias");
    expect_full_attention(json, sizes);
    read_rope(json);
    return sizes.config();
  }

  Olmo2(const format::Json& json, WeightLoader& loader)
      : sizes_(json),
        embedding_(load_embedding(loader, sizes_)),
        frequencies_(load_rope(loader, read_rope(json), sizes_)) {
    for (uint32_t i = 0; i < sizes_.layers; ++i) {
      const std::string prefix = fmt::format("model.layers.{}.", i);
      const auto norm = [&](const char* n) { return load_norm(loader, prefix + n, sizes_); };
      layers_.push_back(
          {.attention_end_norm = norm("post_attention_layernorm"),
           .mlp_end_norm = norm("post_feedforward_layernorm"),
           .attention = load_attention(loader, prefix + "self_attn.", sizes_, HeadNorms::all_heads),
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
      x = x + norm(attention(x, w.attention, {i, frequencies_, scale}), w.attention_end_norm);
      x = x + norm(mlp(x, w.mlp), w.mlp_end_norm);
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

extern constexpr Family olmo2_family = family<Olmo2>("olmo2", "Olmo2ForCausalLM");

}  // namespace refrain::model
