// The table that families.inc spells out, and what is read alike for all of them.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "refrain/model/architecture.h"

namespace refrain::model {

#define FAMILY(name) extern const Family name##_family;
#include "refrain/model/families.inc"
#undef FAMILY

namespace {

using format::Json;

constexpr const Family* kFamilies[] = {
#define FAMILY(name) &name##_family,
#include "refrain/model/families.inc"
#undef FAMILY
};

/// An id, or a list of ids. Nothing when the field is absent.
std::optional<std::vector<uint32_t>> read_ids(const Json& config, std::string_view key) {
  const auto field = config.find(key);
  if (!field) return std::nullopt;
  std::vector<uint32_t> ids;
  if (field->is_array()) {
    for (const Json& item : field->items()) ids.push_back(item.as_u32());
  } else {
    ids.push_back(field->as_u32());
  }
  return ids;
}

}  // namespace

const Family& family_of(const Json& config) {
  const std::string type = config.expect(Json::Kind::object).string("model_type");
  const auto found = std::ranges::find(kFamilies, type, [](const Family* f) { return f->model_type; });
  if (found == std::end(kFamilies)) {
    std::vector<std::string_view> known;
    for (const Family* family : kFamilies) known.push_back(family->model_type);
    const Json field = config.at("model_type");
    field.fail(fmt::format("expected one of: {}; got {}", fmt::join(known, ", "), field.describe()));
  }
  if (const auto file = config.find("model_file")) {
    file->fail("the model brings its own Python code, which is never run");
  }
  if (const auto file = config.find("transformers_weights")) {
    file->fail(fmt::format("expected the weights in model*.safetensors, got {}", file->describe()));
  }
  // Another class over the same layers: a classifier, say, whose head is not that of a language model.
  if (const auto classes = config.find("architectures")) {
    const std::vector<Json> names = classes->items();
    const bool named = std::ranges::any_of(
        names, [&](const Json& name) { return name.as_string() == (*found)->architecture; });
    if (!named && !names.empty()) {
      names[0].fail(fmt::format("expected \"{}\", got {}", (*found)->architecture, names[0].describe()));
    }
  }
  return **found;
}

Config read_config(const Json& json) {
  const Family& family = family_of(json);
  Config config = family.read(json);
  config.model_type = family.model_type;
  if (auto ids = read_ids(json, "eos_token_id")) config.eos_ids = std::move(*ids);
  return config;
}

Config read_config(const std::filesystem::path& folder, const Json& json) {
  Config config = read_config(json);
  const std::filesystem::path generation = folder / "generation_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(generation, ignored)) {
    const Json file = Json::load(generation);
    file.expect(Json::Kind::object);
    if (auto ids = read_ids(file, "eos_token_id")) config.eos_ids = std::move(*ids);
  }
  return config;
}

}  // namespace refrain::model
