#include "refrain/model/decoder.h"

#include <fmt/format.h>

#include <cmath>

namespace refrain::model {

Decoder::Decoder(WeightLoader& loader, DecoderOptions options)
    : options_(std::move(options)), embedding_(load_embedding(loader, options_.sizes)) {
  const DecoderSizes& sizes = options_.sizes;
  rope_ = load_rope(loader, options_.rope, sizes);
  window_rope_ = options_.window_rope ? load_rope(loader, *options_.window_rope, sizes) : rope_;
  const bool before = options_.norms != Norms::behind, behind = options_.norms != Norms::before;
  for (uint32_t i = 0; i < sizes.layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const auto norm = [&](bool there, const char* name) {
      return there ? load_norm(loader, prefix + name, sizes, options_.norms_plus) : Weight();
    };
    layers_.push_back(
        {.attention_norm = norm(before, "input_layernorm"),
         .attention_end_norm = norm(behind, "post_attention_layernorm"),
         .mlp_norm = norm(before, behind ? "pre_feedforward_layernorm" : "post_attention_layernorm"),
         .mlp_end_norm = norm(behind, "post_feedforward_layernorm"),
         .attention = options_.fused_projections
                          ? load_fused_attention(loader, prefix + "self_attn.", sizes)
                          : load_attention(loader, prefix + "self_attn.", sizes, options_.head_norms,
                                           options_.attention_biases),
         .mlp = options_.fused_projections ? load_fused_mlp(loader, prefix + "mlp.", sizes)
                                           : load_mlp(loader, prefix + "mlp.", sizes, options_.mlp_biases)});
  }
  norm_ = load_norm(loader, "model.norm", sizes, options_.norms_plus, options_.logit_scale);
  head_ = load_head(loader, sizes, embedding_);
}

void Decoder::record(CommandEncoder& encoder, const Forward& forward) const {
  const DecoderOptions& o = options_;
  ForwardPass pass(encoder, forward, o.sizes.rms_norm_eps);
  const auto normed = [](const Value& x, const Weight& weight) { return weight ? norm(x, weight) : x; };
  pass.label("embedding");
  Value x =
      pass.embed(embedding_, o.rounds_embedding_scale ? rounded_to(embedding_.dtype(), o.embedding_scale)
                                                      : o.embedding_scale);
  const float score_scale =
      o.score_scale != 0 ? o.score_scale : 1 / std::sqrt(static_cast<float>(o.sizes.head_dim));
  for (uint32_t i = 0; i < o.sizes.layers; ++i) {
    const Layer& w = layers_[i];
    pass.layer(i);
    const bool turns = o.without_rope.empty() || !o.without_rope[i];
    const bool window = forward.cache.state(i).window != 0;
    const AttentionOptions how{.layer = i,
                               .rope = !turns   ? no_rope_
                                       : window ? window_rope_
                                                : rope_,
                               .query_growth = o.query_growth,
                               .scale = score_scale,
                               .cap = o.score_cap};
    x = x + normed(attention(normed(x, w.attention_norm), w.attention, how), w.attention_end_norm);
    x = x + normed(mlp(normed(x, w.mlp_norm), w.mlp, o.activation), w.mlp_end_norm);
  }
  pass.label("head");
  pass.logits(norm(pass.wanted(x), norm_), head_, o.logit_cap);
}

}  // namespace refrain::model
