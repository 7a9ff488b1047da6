// config.json of the embedded model for tests of a few of its layers.
#pragma once

#include <filesystem>
#include <regex>
#include <string>

#include "refrain/core/mapped_file.h"
#include "refrain/format/json.h"

namespace refrain::test {

/// The file `folder`/config.json as if the model had `layers` layers, all of one type.
inline format::Json first_layers(const std::filesystem::path& folder, uint32_t layers) {
  std::string text = read_text_file(folder / "config.json");
  text = std::regex_replace(text, std::regex("(\"num_hidden_layers\": *)[0-9]+"),
                            "$01" + std::to_string(layers));
  text = std::regex_replace(text, std::regex("\"layer_types\": *\\[[^\\]]*\\],"), "");
  return format::Json::parse(text, "config.json");
}

}  // namespace refrain::test
