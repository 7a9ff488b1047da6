// Llama 3: pre-norm decoder, grouped-query attention with rope whose long waves may be slowed down, SwiGLU.
// Source: The Llama 3 Herd of Models (2024); transformers' LlamaForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include <cmath>

#include "refrain/model/blocks.h"

namespace refrain::model {
namespace {

struct Layer {
  Weight attention_norm, mlp_norm;  // [hidden]
  AttentionWeights attention;
  MlpWeights mlp;
};

class Llama final : public Architecture {
 public:
  static Config read(const format::Json& json) {
    const DecoderSizes sizes(json);
    expect_string(json, "hidden_act", "silu");
    expect_off(json, "attention_bias");
    expect_off(json, "mlp_bias");
    expect_full_attention(json, sizes);
    read_rope(json);
    return sizes.config();
  }

  Llama(const format::Json& json, WeightLoader& loader)
      : sizes_(json),
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

extern constexpr Family llama_family = family<Llama>("llama", "LlamaForCausalLM");

}  // namespace refrain::model
