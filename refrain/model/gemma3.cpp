// Gemma 3, text alone: norms before and after both halves of a layer, that scale by 1 + weight; some layers attend
// to a window, with a rope of their own; gelu in the MLP.
// Source: Gemma 3 Technical Report (2025); transformers' Gemma3ForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include <cmath>

#include "refrain/model/blocks.h"

namespace refrain::model {
namespace {

struct Settings {
  explicit Settings(const format::Json& json)
      : sizes(json, {.head_dim = 256, .kv_heads = 4, .tied = true}), common(sizes.config()) {
    expect_string(json, "hidden_activation", "gelu_pytorch_tanh");
    expect_off(json, "attention_bias");
    for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) expect_absent(json, key);
    score_scale = static_cast<float>(1 / std::sqrt(json.u32_or("query_pre_attn_scalar", 256, 1)));

    const uint32_t window = json.u32("sliding_window", 1);
    const uint32_t period = json.u32_or("sliding_window_pattern", 6, 1);  // of older files
    const auto types = read_layer_types(json, sizes.layers, {"sliding_attention", "full_attention"});
    for (uint32_t i = 0; i < sizes.layers; ++i) {
      const bool full = types ? (*types)[i] == "full_attention" : (i + 1) % period == 0;
      if (!full) std::get<KvState>(common.state[i]).window = window;
    }
    // A block for each type of layer; older files have base frequencies, and a scaling for full attention.
    const auto blocks = find_block(json, "rope_parameters");
    const auto of = [&](const char* type) { return blocks ? find_block(*blocks, type) : blocks; };
    for (const std::string& key : blocks ? blocks->keys() : std::vector<std::string>()) {
      const format::Json other = blocks->at(key);
      if (key == "full_attention" || key == "sliding_attention" || other.is_null()) continue;
      other.fail("expected \"full_attention\" and \"sliding_attention\" alone, got " + other.describe());
    }
    rope = read_rope({of("full_attention"), find_block(json, "rope_scaling")}, json.find("rope_theta"), 1e6);
    window_rope = read_rope({of("sliding_attention")}, json.find("rope_local_base_freq"), 1e4);
  }

  DecoderSizes sizes;
  Config common;
  float score_scale = 1;
  RopeSettings rope, window_rope;
};

struct Layer {
  Weight attention_norm, attention_end_norm, mlp_norm, mlp_end_norm;  // [hidden]
  AttentionWeights attention;
  MlpWeights mlp;
  Weight frequencies;  // [head_dim / 2]
};

class Gemma3 final : public Architecture {
 public:
  static Config read(const format::Json& json) { return Settings(json).common; }

  Gemma3(const format::Json& json, WeightLoader& loader)
      : settings_(json), sizes_(settings_.sizes), embedding_(load_embedding(loader, sizes_)) {
    const Weight all = load_rope(loader, settings_.rope, sizes_);
    const Weight window = load_rope(loader, settings_.window_rope, sizes_);
    for (uint32_t i = 0; i < sizes_.layers; ++i) {
      const std::string prefix = fmt::format("model.layers.{}.", i);
      const auto norm = [&](const char* n) { return load_norm(loader, prefix + n, sizes_, 1); };
      layers_.push_back(
          {.attention_norm = norm("input_layernorm"),
           .attention_end_norm = norm("post_attention_layernorm"),
           .mlp_norm = norm("pre_feedforward_layernorm"),
           .mlp_end_norm = norm("post_feedforward_layernorm"),
           .attention = load_attention(loader, prefix + "self_attn.", sizes_, HeadNorms::one_plus_weight),
           .mlp = load_mlp(loader, prefix + "mlp.", sizes_),
           .frequencies = std::get<KvState>(settings_.common.state[i]).window != 0 ? window : all});
    }
    norm_ = load_norm(loader, "model.norm", sizes_, 1);
    head_ = load_head(loader, sizes_, embedding_);
  }

  void record(CommandEncoder& encoder, const Forward& forward) const override {
    ForwardPass pass(encoder, forward, sizes_.rms_norm_eps);
    pass.label("embedding");
    const float root = std::sqrt(static_cast<float>(sizes_.hidden));
    Value x = pass.embed(embedding_, rounded_to(embedding_.dtype(), root));
    for (uint32_t i = 0; i < sizes_.layers; ++i) {
      const Layer& w = layers_[i];
      pass.layer(i);
      const AttentionOptions how{i, w.frequencies, settings_.score_scale};
      x = x + norm(attention(norm(x, w.attention_norm), w.attention, how), w.attention_end_norm);
      x = x + norm(mlp(norm(x, w.mlp_norm), w.mlp, Activation::gelu_tanh), w.mlp_end_norm);
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

extern constexpr Family gemma3_family = family<Gemma3>("gemma3_text", "Gemma3ForCausalLM");

}  // namespace refrain::model
