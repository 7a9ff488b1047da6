// What config.json and generation_config.json say of a model, read strictly: what is not understood is
// refused, so that no model runs as something that it is not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "refrain/format/json.h"

namespace refrain::model {

/// Rotary position embedding: angle = position * theta^(-2 i / head_dim), float32.
struct RopeConfig {
  double theta = 10000.0;
};

/// Dimensions of a decoder-only transformer with grouped-query attention and a gated MLP.
struct Config {
  std::string model_type;  ///< "qwen3"
  uint32_t layers = 0;
  uint32_t hidden = 0;        ///< width of the residual stream
  uint32_t heads = 0;         ///< query heads
  uint32_t kv_heads = 0;      ///< divides heads
  uint32_t head_dim = 0;      ///< even; heads * head_dim need not be hidden
  uint32_t intermediate = 0;  ///< width of the MLP
  uint32_t vocab = 0;         ///< rows of the embedding; may exceed what the tokenizer spells
  uint32_t context_tokens = 0;
  float rms_norm_eps = 0;
  bool tied_embeddings = false;
  RopeConfig rope;
  std::vector<uint32_t> eos_ids;  ///< of generation_config.json if it has any, else of config.json
};

/// Reads `folder`/config.json (given parsed) and, if there, generation_config.json. Accepts rope_theta with
/// rope_scaling as well as rope_parameters. Throws FileError for an unknown architecture, naming those that
/// are known, for a missing, mistyped or contradictory field, and for a feature that would be ignored
/// otherwise.
Config read_config(const std::filesystem::path& folder, const format::Json& config);

}  // namespace refrain::model
