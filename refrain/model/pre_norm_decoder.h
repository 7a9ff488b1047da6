// The decoder that most families are: norm, attention, sum; norm, gated MLP, sum. A family says what it reads and in what
// it differs.
#pragma once

#include <vector>

#include "refrain/model/blocks.h"

namespace refrain::model {

class PreNormDecoder : public Architecture {
 public:
  struct Options {
    DecoderSizes sizes;
    RopeSettings rope = {};
    HeadNorms head_norms = HeadNorms::none;
    std::vector<bool> without_rope = {};  ///< of each layer; empty: none is
  };

  /// Weights have the names of transformers' LlamaForCausalLM. Throws FileError.
  PreNormDecoder(WeightLoader& loader, const Options& options);
  void record(CommandEncoder& encoder, const Forward& forward) const final;

 private:
  struct Layer {
    Weight attention_norm, mlp_norm;  // [hidden]
    AttentionWeights attention;
    MlpWeights mlp;
    Weight frequencies;  // [head_dim / 2], or none
  };

  DecoderSizes sizes_;
  Weight embedding_;  // [vocab, hidden]
  std::vector<Layer> layers_;
  Weight norm_;  // [hidden]
  Weight head_;  // [vocab, hidden]
};

}  // namespace refrain::model
