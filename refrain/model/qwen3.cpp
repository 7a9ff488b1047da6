// Qwen3: pre-norm decoder, grouped-query attention with RMS norms on queries and keys before rope, SwiGLU.
// Source: Qwen3 Technical Report (2025); transformers' Qwen3ForCausalLM gives the reference outputs.
#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "refrain/model/architecture.h"
#include "refrain/model/linear.h"
#include "refrain/ops/add/add.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/gather_rows/gather_rows.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::model {
namespace {

constexpr auto kMatrix = {Use::matvec, Use::matmul};

struct Layer {
  Weight input_norm;           // [hidden]
  Weight q, k, v;              // [heads * head_dim, hidden], [kv_heads * head_dim, hidden] twice
  Weight q_norm, k_norm;       // [head_dim]
  Weight o;                    // [hidden, heads * head_dim]
  Weight post_attention_norm;  // [hidden]
  Weight gate, up;             // [intermediate, hidden]
  Weight down;                 // [hidden, intermediate]
};

class Qwen3 final : public Architecture {
 public:
  Qwen3(const Config& config, WeightLoader& loader) : config_(config) {
    const Config& c = config_;
    const uint32_t q_width = c.heads * c.head_dim;
    const uint32_t kv_width = c.kv_heads * c.head_dim;
    embedding_ = c.tied_embeddings ? loader.matrix("model.embed_tokens", c.vocab, c.hidden,
                                                   {Use::gather, Use::matvec, Use::matmul})
                                   : loader.matrix("model.embed_tokens", c.vocab, c.hidden, {Use::gather});
    for (uint32_t i = 0; i < c.layers; ++i) {
      const std::string p = fmt::format("model.layers.{}.", i);
      Layer& layer = layers_.emplace_back();
      layer.input_norm = loader.vector(p + "input_layernorm.weight", c.hidden);
      layer.q = loader.matrix(p + "self_attn.q_proj", q_width, c.hidden, kMatrix);
      layer.k = loader.matrix(p + "self_attn.k_proj", kv_width, c.hidden, kMatrix);
      layer.v = loader.matrix(p + "self_attn.v_proj", kv_width, c.hidden, kMatrix);
      layer.q_norm = loader.vector(p + "self_attn.q_norm.weight", c.head_dim);
      layer.k_norm = loader.vector(p + "self_attn.k_norm.weight", c.head_dim);
      layer.o = loader.matrix(p + "self_attn.o_proj", c.hidden, q_width, kMatrix);
      layer.post_attention_norm = loader.vector(p + "post_attention_layernorm.weight", c.hidden);
      layer.gate = loader.matrix(p + "mlp.gate_proj", c.intermediate, c.hidden, kMatrix);
      layer.up = loader.matrix(p + "mlp.up_proj", c.intermediate, c.hidden, kMatrix);
      layer.down = loader.matrix(p + "mlp.down_proj", c.hidden, c.intermediate, kMatrix);
    }
    norm_ = loader.vector("model.norm.weight", c.hidden);
    if (c.tied_embeddings) {
      loader.skip("lm_head");  // some files store the embedding a second time
      head_ = embedding_;
    } else {
      head_ = loader.matrix("lm_head", c.vocab, c.hidden, kMatrix);
    }

    std::vector<float> frequencies(c.head_dim / 2);
    for (size_t i = 0; i < frequencies.size(); ++i) {
      frequencies[i] =
          1.0f / static_cast<float>(std::pow(c.rope.theta, 2.0 * static_cast<double>(i) / c.head_dim));
    }
    frequencies_ = loader.computed("rope frequencies", frequencies);
  }

  void record(CommandEncoder& e, const Forward& f) const override {
    const Config& c = config_;
    const int64_t rows = f.step.layout.rows;
    const auto rows_of = [&](int64_t width) {
      return e.temp(DType::activation, {rows, width}, f.step.live_rows);
    };

    Temp x = rows_of(c.hidden);
    e.label("embedding");
    ops::embedding(e, {.weight = embedding_, .rows = f.step.rows, .status = f.status, .output = x});

    for (uint32_t i = 0; i < c.layers; ++i) {
      const Layer& layer = layers_[i];
      e.label(fmt::format("layer {}", i));
      x = attention(e, f, layer, f.cache.layer(i), x, rows_of);
      x = mlp(e, layer, x, rows_of);
    }

    e.label("head");
    const auto outputs_of = [&](int64_t width) {
      return e.temp(DType::activation, {rows, width}, f.step.live_outputs);
    };
    const Temp wanted = outputs_of(c.hidden);
    ops::gather_rows(e, {.input = x,
                         .index = f.step.outputs,
                         .input_rows = f.step.live_rows,
                         .status = f.status,
                         .output = wanted});
    const Temp h = outputs_of(c.hidden);
    ops::rms_norm(e, {.input = wanted, .weight = norm_, .output = h, .eps = c.rms_norm_eps});
    linear(e, h, head_, f.logits);
  }

 private:
  template <class RowsOf>
  Temp attention(CommandEncoder& e, const Forward& f, const Layer& layer, const Buffer& cache, const Temp& x,
                 const RowsOf& rows_of) const {
    const Config& c = config_;
    const int64_t rows = x.shape()[0];
    const Shape q_heads{rows, c.heads, c.head_dim};
    const Shape kv_heads{rows, c.kv_heads, c.head_dim};
    const int64_t q_width = int64_t{c.heads} * c.head_dim;
    const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;

    const Temp h = rows_of(c.hidden);
    ops::rms_norm(e, {.input = x, .weight = layer.input_norm, .output = h, .eps = c.rms_norm_eps});

    const Temp q = rows_of(q_width), k = rows_of(kv_width), v = rows_of(kv_width);
    linear(e, h, layer.q, q);
    linear(e, h, layer.k, k);
    linear(e, h, layer.v, v);

    const Temp q_normed = rows_of(q_width).view(q_heads), k_normed = rows_of(kv_width).view(kv_heads);
    ops::rms_norm(
        e, {.input = q.view(q_heads), .weight = layer.q_norm, .output = q_normed, .eps = c.rms_norm_eps});
    ops::rms_norm(
        e, {.input = k.view(kv_heads), .weight = layer.k_norm, .output = k_normed, .eps = c.rms_norm_eps});

    const Temp q_rope = rows_of(q_width).view(q_heads), k_rope = rows_of(kv_width).view(kv_heads);
    ops::rope(e, {.input = q_normed, .rows = f.step.rows, .frequencies = frequencies_, .output = q_rope});
    ops::rope(e, {.input = k_normed, .rows = f.step.rows, .frequencies = frequencies_, .output = k_rope});

    ops::kv_write(e, {.key = k_rope,
                      .value = v.view(kv_heads),
                      .rows = f.step.rows,
                      .sequences = f.step.sequences,
                      .page_table = f.step.page_table,
                      .cache = cache,
                      .status = f.status});
    const Temp mixed = rows_of(q_width);
    ops::attention(e, {.query = q_rope,
                       .rows = f.step.rows,
                       .sequences = f.step.sequences,
                       .page_table = f.step.page_table,
                       .cache = cache,
                       .status = f.status,
                       .output = mixed.view(q_heads),
                       .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim))});

    const Temp o = rows_of(c.hidden), sum = rows_of(c.hidden);
    linear(e, mixed, layer.o, o);
    ops::add(e, {.a = x, .b = o, .output = sum});
    return sum;
  }

  template <class RowsOf>
  Temp mlp(CommandEncoder& e, const Layer& layer, const Temp& x, const RowsOf& rows_of) const {
    const Config& c = config_;
    const Temp h = rows_of(c.hidden);
    ops::rms_norm(e, {.input = x, .weight = layer.post_attention_norm, .output = h, .eps = c.rms_norm_eps});
    const Temp gate = rows_of(c.intermediate), up = rows_of(c.intermediate);
    linear(e, h, layer.gate, gate);
    linear(e, h, layer.up, up);
    const Temp gated = rows_of(c.intermediate);
    ops::silu_mul(e, {.gate = gate, .up = up, .output = gated});
    const Temp down = rows_of(c.hidden), sum = rows_of(c.hidden);
    linear(e, gated, layer.down, down);
    ops::add(e, {.a = x, .b = down, .output = sum});
    return sum;
  }

  Config config_;
  Weight embedding_;  // [vocab, hidden]
  std::vector<Layer> layers_;
  Weight norm_;         // [hidden]
  Weight head_;         // [vocab, hidden]; the embedding itself when tied
  Weight frequencies_;  // [head_dim / 2]
};

}  // namespace

std::unique_ptr<Architecture> load_qwen3(const Config& config, WeightLoader& loader) {
  return std::make_unique<Qwen3>(config, loader);
}

}  // namespace refrain::model
