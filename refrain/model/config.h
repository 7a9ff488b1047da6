// What the runner and the command line know of any model. What a family alone needs, it reads into a struct of
// its own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "refrain/format/json.h"
#include "refrain/model/layer_state.h"

namespace refrain::model {

struct Config {
  std::string model_type;  ///< "qwen3"
  uint32_t vocab = 0;      ///< rows of the embedding; may exceed what the tokenizer spells
  uint32_t context_tokens = 0;
  std::vector<LayerState> state;  ///< of each layer
  std::vector<uint32_t> eos_ids;  ///< of generation_config.json if it has any, else of config.json
  std::vector<std::pair<std::string, std::string>> facts;  ///< titles and values, for people
};

/// Reads `folder`/config.json (given parsed) and, if there, generation_config.json, strictly: what is not
/// understood is refused, so that no model runs as something that it is not. Throws FileError for an unknown
/// architecture, naming those that are known, for a missing, mistyped or contradictory field, and for a
/// feature that would be ignored otherwise.
Config read_config(const std::filesystem::path& folder, const format::Json& config);
/// The same of config.json alone.
Config read_config(const format::Json& config);

}  // namespace refrain::model
