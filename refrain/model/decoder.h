// The decoder that families are: attention and a gated MLP, norms around them, sums. A family says what it reads and in what
// it differs.
#pragma once

#include <optional>
#include <vector>

#include "refrain/model/blocks.h"

namespace refrain::model {

/// Where the norms of a layer's two halves are.
enum class Norms { before, behind, around };

struct DecoderOptions {
  DecoderSizes sizes;
  RopeSettings rope = {};
  std::optional<RopeSettings> window_rope = {};  ///< of layers that attend to a window, where it is another
  std::vector<bool> without_rope = {};           ///< of each layer; empty: none is
  RopeGrowth query_growth = {};
  Norms norms = Norms::before;
  float norms_plus = 0;  ///< norms of the residual stream scale by so much more than is stored
  HeadNorms head_norms = HeadNorms::none;
  Biases attention_biases = Biases::none;
  bool mlp_biases = false;
  bool fused_projections = false;  ///< one matrix for queries, keys and values, one for gate and up
  Activation activation = Activation::silu;
  float embedding_scale = 1;
  bool rounds_embedding_scale = false;  ///< to the type of the embedding's elements
  float score_scale = 0;                ///< 0: 1 / sqrt(head_dim)
  float score_cap = 0;                  ///< 0: none
  float logit_scale = 1;
  float logit_cap = 0;  ///< 0: none
};

class Decoder : public Architecture {
 public:
  /// Weights have the names of transformers' LlamaForCausalLM; of norms behind, Gemma's; of matrices stored as one,
  /// Phi-3's. Throws FileError.
  Decoder(WeightLoader& loader, DecoderOptions options);
  void record(CommandEncoder& encoder, const Forward& forward) const final;

 private:
  struct Layer {
    Weight attention_norm, attention_end_norm, mlp_norm, mlp_end_norm;  // [hidden], or none
    AttentionWeights attention;
    MlpWeights mlp;
  };

  DecoderOptions options_;
  Weight embedding_;  // [vocab, hidden]
  RopeWeights rope_, window_rope_, no_rope_;
  std::vector<Layer> layers_;
  Weight norm_;  // [hidden]
  Weight head_;  // [vocab, hidden]
};

}  // namespace refrain::model
