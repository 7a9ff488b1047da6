// SmolLM3: pre-norm decoder, grouped-query attention, without rope in each fourth layer, SwiGLU.
// Source: SmolLM3 (2025), RoPE to NoRoPE and Back Again (2025); transformers' SmolLM3ForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include <cmath>

#include "refrain/model/blocks.h"

namespace refrain::model {
namespace {

struct Settings {
  explicit Settings(const format::Json& json)
      : sizes(json, {.kv_heads = 4, .tied = true}), common(sizes.config()) {
    expect_string(json, "hidden_act", "silu");
    for (const char* key : {"attention_bias", "mlp_bias"}) expect_off(json, key);
    rope = read_rope({find_block(json, "rope_parameters"), find_block(json, "rope_scaling")},
                     json.find("rope_theta"), 2e6);
    if (const auto list = json.find("no_rope_layers")) {  // 1: with rope
      const std::vector<format::Json> items = list->items();
      if (items.size() < sizes.layers)
        list->fail(fmt::format("expected {} or more, got {}", sizes.layers, items.size()));
      for (uint32_t i = 0; i < sizes.layers; ++i) turns.push_back(items[i].as_u32() != 0);
    } else {
      const uint32_t period = json.u32_or("no_rope_layer_interval", 4, 1);
      for (uint32_t i = 0; i < sizes.layers; ++i) turns.push_back((i + 1) % period != 0);
    }
    const auto types = read_layer_types(json, sizes.layers, {"full_attention", "sliding_attention"});
    const bool windows = json.boolean_or("use_sliding_window", false) && json.has("sliding_window");
    for (uint32_t i = 0; i < sizes.layers; ++i) {
      const bool slides = types ? (*types)[i] == "sliding_attention" : windows && !turns[i];
      if (slides) std::get<KvState>(common.state[i]).window = json.u32("sliding_window", 1);
    }
  }

  DecoderSizes sizes;
  Config common;
  RopeSettings rope;
  std::vector<bool> turns;  // layers with rope
};

struct Layer {
  Weight attention_norm, mlp_norm;  // [hidden]
  AttentionWeights attention;
  MlpWeights mlp;
  Weight frequencies;  // [head_dim / 2], or none
};

class SmolLm3 final : public Architecture {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  SmolLm3(const format::Json& json, WeightLoader& loader)
      : settings_(json), sizes_(settings_.sizes), embedding_(load_embedding(loader, sizes_)) {
    const Weight frequencies = load_rope(loader, settings_.rope, sizes_);
    for (uint32_t i = 0; i < sizes_.layers; ++i) {
      const std::string prefix = fmt::format("model.layers.{}.", i);
      const auto norm = [&](const char* n) { return load_norm(loader, prefix + n, sizes_); };
      layers_.push_back({.attention_norm = norm("input_layernorm"),
                         .mlp_norm = norm("post_attention_layernorm"),
                         .attention = load_attention(loader, prefix + "self_attn.", sizes_),
                         .mlp = load_mlp(loader, prefix + "mlp.", sizes_),
                         .frequencies = settings_.turns[i] ? frequencies : Weight()});
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
      x = x + attention(norm(x, w.attention_norm), w.attention, {i, w.frequencies, scale});
      x = x + mlp(norm(x, w.mlp_norm), w.mlp);
    }
    pass.label("head");
    pass.logits(norm(pass.wanted(x), norm_), head_);
  }

 private:
  Settings settings_;
  const DecoderSizes& sizes_;
  Weight embedding_;  // [vocab, hidden]
  std::vector<Layer> layers_;
  Weight norm_;  // [hidden]
  Weight head_;  // [vocab, hidden]
};

}  // namespace

extern constexpr Family smollm3_family = family<SmolLm3>("smollm3", "SmolLM3ForCausalLM");

}  // namespace refrain::model
