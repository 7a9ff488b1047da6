#include "refrain/model/blocks.h"

#include <fmt/format.h>

#include "refrain/core/half.h"
#include "refrain/ops/add/add.h"
#include "refrain/ops/add_bias/add_bias.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/gather_rows/gather_rows.h"
#include "refrain/ops/gelu_mul/gelu_mul.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/silu_mul/silu_mul.h"
#include "refrain/ops/softcap/softcap.h"

namespace refrain::model {
namespace {

constexpr auto kMatrix = {Use::matvec, Use::matmul};
constexpr const char* kEmbedding = "model.embed_tokens";
constexpr const char* kHead = "lm_head";

Shape heads_of(const Value& x, uint32_t count) { return {x.temp().shape()[0], count, x.width() / count}; }

}  // namespace

uint32_t Value::width() const {
  const Shape& shape = temp_.shape();
  return static_cast<uint32_t>(shape.elements() / shape[0]);
}

Value Value::heads(uint32_t count) const { return {*pass_, temp_.view(heads_of(*this, count)), *live_}; }

Value Value::rows() const { return {*pass_, temp_.view({temp_.shape()[0], width()}), *live_}; }

Value Value::like(uint32_t width) const {
  return {*pass_, pass_->encoder().temp(DType::activation, {temp_.shape()[0], width}, *live_), *live_};
}

Value ForwardPass::embed(const Weight& embedding, float scale) {
  const StepBlock& step = forward_.step;
  const Shape shape{step.layout.rows, embedding.shape()[1]};
  Value x(*this, encoder_.temp(DType::activation, shape, step.live_rows), step.live_rows);
  ops::embedding(encoder_, {.weight = embedding,
                            .rows = step.rows,
                            .status = forward_.slots.status(),
                            .output = x.temp(),
                            .scale = scale});
  return x;
}

Value ForwardPass::attend(uint32_t layer, const Value& query, const Value& key, const Value& value,
                          float scale, float cap) {
  const StepBlock& step = forward_.step;
  const Buffer& cache = forward_.cache.layer(layer);
  const Buffer& pages = forward_.slots.page_table(forward_.cache.group_of(layer));
  ops::kv_write(encoder_, {.key = key.temp(),
                           .value = value.temp(),
                           .rows = step.rows,
                           .page_table = pages,
                           .cache = cache,
                           .status = forward_.slots.status()});
  Value mixed = query.like(query.width()).heads(static_cast<uint32_t>(query.temp().shape()[1]));
  ops::attention(encoder_, {.query = query.temp(),
                            .rows = step.rows,
                            .page_table = pages,
                            .cache = cache,
                            .status = forward_.slots.status(),
                            .output = mixed.temp(),
                            .scale = scale,
                            .window = forward_.cache.state(layer).window,
                            .softcap = cap});
  return mixed;
}

Value ForwardPass::wanted(const Value& x) {
  const StepBlock& step = forward_.step;
  const Shape shape{step.layout.outputs, x.width()};
  Value result(*this, encoder_.temp(DType::activation, shape, step.live_outputs), step.live_outputs);
  ops::gather_rows(encoder_, {.input = x.temp(),
                              .index = step.outputs,
                              .input_rows = step.live_rows,
                              .status = forward_.slots.status(),
                              .output = result.temp()});
  return result;
}

void ForwardPass::logits(const Value& x, const Weight& head, float cap) {
  ops::matmul(encoder_, {.input = x.temp(), .weight = head, .output = forward_.logits});
  if (cap != 0) ops::softcap(encoder_, {.input = forward_.logits, .output = forward_.logits, .cap = cap});
}

void ForwardPass::layer(uint32_t index) { label(fmt::format("layer {}", index)); }

Value operator+(const Value& a, const Value& b) {
  Value sum = a.like(a.width());
  ops::add(a.pass().encoder(), {.a = a.temp(), .b = b.temp(), .output = sum.temp()});
  return sum;
}

Value norm(const Value& x, const Weight& weight) {
  const Shape& shape = x.temp().shape();
  Value y = x.like(x.width());
  if (shape.rank() == 3) y = y.heads(static_cast<uint32_t>(shape[1]));
  ops::rms_norm(x.pass().encoder(),
                {.input = x.temp(), .weight = weight, .output = y.temp(), .eps = x.pass().eps()});
  return y;
}

Value linear(const Value& x, const Linear& w) {
  CommandEncoder& encoder = x.pass().encoder();
  const Value y = x.like(static_cast<uint32_t>(w.weight.shape()[0]));
  ops::matmul(encoder, {.input = x.temp(), .weight = w.weight, .output = y.temp()});
  if (!w.bias) return y;
  Value sum = y.like(y.width());
  ops::add_bias(encoder, {.input = y.temp(), .bias = w.bias, .output = sum.temp()});
  return sum;
}

Value rope(const Value& x, const RopeWeights& weights, const RopeGrowth& growth) {
  Value y = x.like(x.width()).heads(static_cast<uint32_t>(x.temp().shape()[1]));
  const Forward& forward = x.pass().forward();
  const bool longer = weights.longer_frequencies && forward.context_tokens > weights.original_context_tokens;
  ops::rope(x.pass().encoder(), {.input = x.temp(),
                                 .rows = forward.step.rows,
                                 .frequencies = longer ? weights.longer_frequencies : weights.frequencies,
                                 .output = y.temp(),
                                 .scale = weights.scale,
                                 .growth = growth.rate,
                                 .period = growth.period});
  return y;
}

Value attention(const Value& x, const AttentionWeights& w, const AttentionOptions& options) {
  const KvState& state = x.pass().forward().cache.state(options.layer);
  Value q = linear(x, w.q), k = linear(x, w.k), v = linear(x, w.v);
  const auto heads_of = [&](const Value& value, const Weight& weight) {
    const uint32_t count = value.width() / state.head_dim;
    if (!weight) return value.heads(count);
    if (weight.shape()[0] == value.width()) return norm(value, weight).heads(count);
    return norm(value.heads(count), weight);
  };
  q = heads_of(q, w.q_norm);
  k = heads_of(k, w.k_norm);
  v = v.heads(state.kv_heads);
  if (options.rope.frequencies) {
    q = rope(q, options.rope, options.query_growth);
    k = rope(k, options.rope);
  }
  const Value mixed = x.pass().attend(options.layer, q, k, v, options.scale, options.cap);
  return linear(mixed.rows(), w.o);
}

Value mlp(const Value& x, const MlpWeights& w, Activation activation) {
  const Value gate = linear(x, w.gate), up = linear(x, w.up);
  const Value gated = gate.like(gate.width());
  if (activation == Activation::silu) {
    ops::silu_mul(x.pass().encoder(), {.gate = gate.temp(), .up = up.temp(), .output = gated.temp()});
  } else {
    ops::gelu_mul(x.pass().encoder(), {.gate = gate.temp(), .up = up.temp(), .output = gated.temp()});
  }
  return linear(gated, w.down);
}

namespace {

Linear load_linear(WeightLoader& loader, const std::string& module, uint32_t outputs, uint32_t inputs,
                   bool bias) {
  Weight weight = loader.matrix(module, outputs, inputs, kMatrix);
  return {std::move(weight), bias ? loader.vector(module + ".bias", outputs) : Weight()};
}

}  // namespace

AttentionWeights load_attention(WeightLoader& loader, const std::string& prefix, const DecoderSizes& sizes,
                                HeadNorms norms, Biases biases) {
  const uint32_t q_width = sizes.heads * sizes.head_dim, kv_width = sizes.kv_heads * sizes.head_dim;
  const auto head_norm = [&](const char* name, uint32_t width) {
    if (norms == HeadNorms::none) return Weight();
    return loader.vector(prefix + name, norms == HeadNorms::all_heads ? width : sizes.head_dim,
                         norms == HeadNorms::one_plus_weight ? 1.0f : 0.0f);
  };
  const bool some = biases != Biases::none;
  return {.q = load_linear(loader, prefix + "q_proj", q_width, sizes.hidden, some),
          .k = load_linear(loader, prefix + "k_proj", kv_width, sizes.hidden, some),
          .v = load_linear(loader, prefix + "v_proj", kv_width, sizes.hidden, some),
          .q_norm = head_norm("q_norm.weight", q_width),
          .k_norm = head_norm("k_norm.weight", kv_width),
          .o = load_linear(loader, prefix + "o_proj", sizes.hidden, q_width, biases == Biases::all)};
}

MlpWeights load_mlp(WeightLoader& loader, const std::string& prefix, const DecoderSizes& sizes, bool biases) {
  return {.gate = load_linear(loader, prefix + "gate_proj", sizes.intermediate, sizes.hidden, biases),
          .up = load_linear(loader, prefix + "up_proj", sizes.intermediate, sizes.hidden, biases),
          .down = load_linear(loader, prefix + "down_proj", sizes.hidden, sizes.intermediate, biases)};
}

AttentionWeights load_fused_attention(WeightLoader& loader, const std::string& prefix,
                                      const DecoderSizes& sizes) {
  const uint32_t q_width = sizes.heads * sizes.head_dim, kv_width = sizes.kv_heads * sizes.head_dim;
  const auto rows = [&](uint32_t first, uint32_t count) {
    return Linear{
        loader.matrix_rows(prefix + "qkv_proj", q_width + 2 * kv_width, sizes.hidden, first, count, kMatrix),
        {}};
  };
  return {.q = rows(0, q_width),
          .k = rows(q_width, kv_width),
          .v = rows(q_width + kv_width, kv_width),
          .q_norm = {},
          .k_norm = {},
          .o = load_linear(loader, prefix + "o_proj", sizes.hidden, q_width, false)};
}

MlpWeights load_fused_mlp(WeightLoader& loader, const std::string& prefix, const DecoderSizes& sizes) {
  const uint32_t width = sizes.intermediate;
  const auto rows = [&](uint32_t first) {
    return Linear{loader.matrix_rows(prefix + "gate_up_proj", 2 * width, sizes.hidden, first, width, kMatrix),
                  {}};
  };
  return {.gate = rows(0),
          .up = rows(width),
          .down = load_linear(loader, prefix + "down_proj", sizes.hidden, width, false)};
}

Weight load_embedding(WeightLoader& loader, const DecoderSizes& sizes) {
  if (!sizes.tied_embeddings) return loader.matrix(kEmbedding, sizes.vocab, sizes.hidden, {Use::gather});
  // Some writers keep one name of a tensor that has two, and not always this one.
  const std::string module = loader.has(kHead) && !loader.has(kEmbedding) ? kHead : kEmbedding;
  return loader.matrix(module, sizes.vocab, sizes.hidden, {Use::gather, Use::matvec, Use::matmul});
}

Weight load_head(WeightLoader& loader, const DecoderSizes& sizes, const Weight& embedding) {
  if (!sizes.tied_embeddings) return loader.matrix(kHead, sizes.vocab, sizes.hidden, kMatrix);
  // Some files store the embedding a second time.
  if (loader.has(kEmbedding)) loader.skip_copy(kHead, kEmbedding, sizes.vocab, sizes.hidden);
  return embedding;
}

Weight load_norm(WeightLoader& loader, const std::string& module, const DecoderSizes& sizes, float plus,
                 float times) {
  return loader.vector(module + ".weight", sizes.hidden, plus, times);
}

RopeWeights load_rope(WeightLoader& loader, const RopeSettings& rope, const DecoderSizes& sizes) {
  RopeSettings known = rope;
  if (known.original_context_tokens == 0 && known.needs_original())
    known.original_context_tokens = sizes.context_tokens;
  const auto frequencies = [&](bool longer) {
    return loader.computed("rope frequencies", rope_frequencies(known, sizes.rotary_dim, longer));
  };
  RopeWeights weights;
  weights.frequencies = frequencies(false);
  weights.scale = static_cast<float>(rope.attention_factor);
  if (rope.scaling == RopeSettings::Scaling::longrope) {
    weights.original_context_tokens = rope.original_context_tokens;
    weights.longer_frequencies = frequencies(true);
  }
  return weights;
}

float rounded_to(DType dtype, float value) {
  if (dtype == DType::bf16) return bf16::from_float(value).to_float();
  if (dtype == DType::f16) return f16::from_float(value).to_float();
  return value;
}

}  // namespace refrain::model
