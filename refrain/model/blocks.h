// The blocks of a forward pass in value style, `x = x + mlp(norm(x, w), ...)`: each call records plain ops and
// returns the value that they make. What fuses, and where a value lies, is the plan's business.
//
// C++ does not say in which order the arguments of a call are computed: where two of them record, name the
// first.
#pragma once

#include <string_view>

#include "refrain/model/architecture.h"
#include "refrain/model/decoder_config.h"
#include "refrain/model/rope_config.h"

namespace refrain::model {

class ForwardPass;

/// A value of a pass, f32 [rows, width] or [rows, heads, head_dim], the rows of its step. Lives no longer than
/// the pass. A copy names the same value.
class Value {
 public:
  const Temp& temp() const { return temp_; }
  uint32_t width() const;  ///< of a row, heads together
  /// The same value as so many heads, or as whole rows.
  Value heads(uint32_t count) const;
  Value rows() const;
  /// A new value of the same rows, not yet written.
  Value like(uint32_t width) const;
  ForwardPass& pass() const { return *pass_; }

 private:
  friend class ForwardPass;
  Value(ForwardPass& pass, Temp temp, const Buffer& live)
      : pass_(&pass), temp_(std::move(temp)), live_(&live) {}

  ForwardPass* pass_;
  Temp temp_;
  const Buffer* live_;
};

/// One recording of a model. The step, the cache and the status words are its own business, in blocks.cpp alone.
class ForwardPass {
 public:
  /// `eps`: of all norms.
  ForwardPass(CommandEncoder& encoder, const Forward& forward, float eps)
      : encoder_(encoder), forward_(forward), eps_(eps) {}

  /// The embeddings of the step's tokens, times `scale`.
  Value embed(const Weight& embedding, float scale = 1);
  /// Writes keys and values to the layer's cache and attends to it, its window alone where it has one.
  /// Scores stay within `cap`, if it is not 0. query [rows, heads, head_dim], key and value
  /// [rows, kv_heads, head_dim]; gives the shape of `query`.
  Value attend(uint32_t layer, const Value& query, const Value& key, const Value& value, float scale,
               float cap = 0);
  /// Those rows whose logits are wanted.
  Value wanted(const Value& x);
  /// The end of a pass: logits = x head^T, within `cap` if it is not 0.
  void logits(const Value& x, const Weight& head, float cap = 0);

  /// Begins the commands of layer `index`, or of another part.
  void layer(uint32_t index);
  void label(std::string_view label) { encoder_.label(label); }

  CommandEncoder& encoder() { return encoder_; }
  const Forward& forward() const { return forward_; }
  float eps() const { return eps_; }

 private:
  CommandEncoder& encoder_;
  const Forward& forward_;
  float eps_;
};

Value operator+(const Value& a, const Value& b);
/// RMS norm of each row, or of each head.
Value norm(const Value& x, const Weight& weight);
/// A layer that is x weight^T + bias.
struct Linear {
  Weight weight;  ///< [outputs, inputs], of any format
  Weight bias;    ///< [outputs], or none
};
Value linear(const Value& x, const Linear& weights);
struct RopeWeights {
  Weight frequencies;  ///< [pairs], or none, where nothing turns
  float scale = 1;     ///< of cosines and sines
  /// Where slots have more positions than these, other frequencies are in the place of the first, or none.
  uint32_t original_context_tokens = 0;
  Weight longer_frequencies;
};
/// How what is rotated grows with the position: by 1 + rate ln(1 + floor(position / period)).
struct RopeGrowth {
  float rate = 0;
  uint32_t period = 0;
};
Value rope(const Value& x, const RopeWeights& weights, const RopeGrowth& growth = {});

struct AttentionWeights {
  Linear q, k, v;         ///< [heads * head_dim, hidden], [kv_heads * head_dim, hidden] twice
  Weight q_norm, k_norm;  ///< [head_dim], or of all heads at once, or none
  Linear o;               ///< [hidden, heads * head_dim]
};

struct AttentionOptions {
  uint32_t layer = 0;
  const RopeWeights& rope;
  RopeGrowth query_growth = {};
  float scale = 1;  ///< of scores
  float cap = 0;    ///< of scores; 0: none
};

/// Projections, norms of queries and keys where there are weights for them, rope, attention, projection.
Value attention(const Value& x, const AttentionWeights& weights, const AttentionOptions& options);

struct MlpWeights {
  Linear gate, up;  ///< [intermediate, hidden]
  Linear down;      ///< [hidden, intermediate]
};

enum class Activation { silu, gelu_tanh };
/// down(activation(gate(x)) * up(x))
Value mlp(const Value& x, const MlpWeights& weights, Activation activation = Activation::silu);

/// Norms of queries and keys: of each head, scaled by a weight or one more, or of all heads at once.
enum class HeadNorms { none, weight, one_plus_weight, all_heads };
/// Biases of the projections of attention: of queries, keys and values, or of the output too.
enum class Biases { none, qkv, all };
/// Weights by the names that they have in nearly all families. `prefix` ends with a dot.
AttentionWeights load_attention(WeightLoader& loader, const std::string& prefix, const DecoderSizes& sizes,
                                HeadNorms norms = HeadNorms::none, Biases biases = Biases::none);
MlpWeights load_mlp(WeightLoader& loader, const std::string& prefix, const DecoderSizes& sizes,
                    bool biases = false);
/// The same of `qkv_proj` and `gate_up_proj`, whose rows are those of the matrices one behind the other.
AttentionWeights load_fused_attention(WeightLoader& loader, const std::string& prefix,
                                      const DecoderSizes& sizes);
MlpWeights load_fused_mlp(WeightLoader& loader, const std::string& prefix, const DecoderSizes& sizes);
/// `lm_head`, or the embedding where they are tied; then the file may have `lm_head` too, with the same bytes.
Weight load_head(WeightLoader& loader, const DecoderSizes& sizes, const Weight& embedding);
Weight load_embedding(WeightLoader& loader, const DecoderSizes& sizes);
/// The norm `module` of the residual stream; what it scales by is `plus` more than is stored, all that `times`.
Weight load_norm(WeightLoader& loader, const std::string& module, const DecoderSizes& sizes, float plus = 0,
                 float times = 1);
RopeWeights load_rope(WeightLoader& loader, const RopeSettings& rope, const DecoderSizes& sizes);
/// `value` as an element of type `dtype` holds it: f32, f16 or bf16.
float rounded_to(DType dtype, float value);

}  // namespace refrain::model
