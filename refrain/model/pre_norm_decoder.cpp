#include "refrain/model/pre_norm_decoder.h"

#include <fmt/format.h>

#include <cmath>

namespace refrain::model {

PreNormDecoder::PreNormDecoder(WeightLoader& loader, const Options& options)
    : sizes_(options.sizes), embedding_(load_embedding(loader, sizes_)) {
  const Weight frequencies = load_rope(loader, options.rope, sizes_);
  for (uint32_t i = 0; i < sizes_.layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const auto norm = [&](const char* n) { return load_norm(loader, prefix + n, sizes_); };
    const bool turns = options.without_rope.empty() || !options.without_rope[i];
    layers_.push_back({.attention_norm = norm("input_layernorm"),
                       .mlp_norm = norm("post_attention_layernorm"),
                       .attention = load_attention(loader, prefix + "self_attn.", sizes_, options.head_norms),
                       .mlp = load_mlp(loader, prefix + "mlp.", sizes_),
                       .frequencies = turns ? frequencies : Weight()});
  }
  norm_ = load_norm(loader, "model.norm", sizes_);
  head_ = load_head(loader, sizes_, embedding_);
}

void PreNormDecoder::record(CommandEncoder& encoder, const Forward& forward) const {
  ForwardPass pass(encoder, forward, sizes_.rms_norm_eps);
  const float scale = 1.0f / std::sqrt(static_cast<float>(sizes_.head_dim));
  pass.label("embedding");
  Value x = pass.embed(embedding_);
  for (uint32_t i = 0; i < sizes_.layers; ++i) {
    const Layer& w = layers_[i];
    pass.layer(i);
    x = x + attention(norm(x, w.attention_norm), w.attention, {i, w.frequencies, scale});
    x = x + mlp(norm(x, w.mlp_norm), w.mlp);
  }
  pass.label("head");
  pass.logits(norm(pass.wanted(x), norm_), head_);
}

}  // namespace refrain::model
