// Reader of tokenizer.json and tokenizer_config.json: builds the parts, refuses what they do not support.
#include <fmt/format.h>
#include <simdjson.h>

#include <unordered_set>
#include <utility>

#include "refrain/core/error.h"
#include "refrain/core/foreign_text.h"
#include "refrain/core/mapped_file.h"
#include "refrain/text/byte_level.h"
#include "refrain/text/tokenizer_parts.h"

namespace refrain::text {
namespace {

namespace dom = simdjson::dom;

constexpr size_t kMaxNesting = 64;
constexpr size_t kMaxShownBytes = 60;

/// `name` in double quotes on one line, cut when long.
std::string in_quotes(std::string_view name) {
  std::string out = "\"";
  for (const char c : name.substr(0, kMaxShownBytes)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out.push_back(c);
    }
  }
  if (name.size() <= kMaxShownBytes) return out + "\"";
  while ((static_cast<unsigned char>(out.back()) & 0x80) != 0)
    out.pop_back();  // perhaps a part of a character
  return out + "…\"";
}

std::string_view kind_of(const dom::element& value) {
  switch (value.type()) {
    case dom::element_type::ARRAY:
      return "an array";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::STRING:
      return "a string";
    case dom::element_type::BOOL:
      return "a boolean";
    case dom::element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

/// A value of the file and the name of its place, for messages.
class Value {
 public:
  Value(dom::element element, const std::string& file, std::string place)
      : element_(element), file_(&file), place_(std::move(place)) {}

  [[noreturn]] void fail(std::string_view what) const {
    throw FileError(fmt::format("{}: {}: {}", *file_, place_.empty() ? "top level" : place_, what));
  }
  [[noreturn]] void fail_kind(std::string_view expected) const {
    fail(fmt::format("expected {}, got {}", expected, kind_of(element_)));
  }
  [[noreturn]] void unsupported(std::string_view got) const { fail(fmt::format("{} is not supported", got)); }

  bool is_null() const { return element_.is_null(); }
  bool is_string() const { return element_.is_string(); }
  bool is_array() const { return element_.is_array(); }
  bool is_object() const { return element_.is_object(); }

  dom::object object() const {
    if (!element_.is_object()) fail_kind("an object");
    return element_.get_object().value_unsafe();
  }
  dom::array array() const {
    if (!element_.is_array()) fail_kind("an array");
    return element_.get_array().value_unsafe();
  }
  std::string_view string() const {
    if (!element_.is_string()) fail_kind("a string");
    return element_.get_string().value_unsafe();
  }
  bool boolean() const {
    if (!element_.is_bool()) fail_kind("true or false");
    return element_.get_bool().value_unsafe();
  }
  uint32_t id() const {
    uint64_t value = 0;
    if (element_.get(value) != simdjson::SUCCESS) fail("expected an id, a whole number of at least 0");
    if (value >= kMaxVocabulary) fail(fmt::format("expected an id below {}, got {}", kMaxVocabulary, value));
    return static_cast<uint32_t>(value);
  }

  /// The member `key`, or nothing when it is absent or null. Each member may occur once.
  std::optional<Value> find(std::string_view key) const {
    std::optional<Value> found;
    for (const dom::key_value_pair field : object()) {
      if (field.key != key) continue;
      if (found) fail(fmt::format("{} occurs twice", in_quotes(key)));
      found = member(key, field.value);
    }
    if (found && found->is_null()) return std::nullopt;
    return found;
  }
  Value at(std::string_view key) const {
    auto found = find(key);
    if (!found) fail(fmt::format("expected a member {}", in_quotes(key)));
    return std::move(*found);
  }
  bool flag(std::string_view key, bool otherwise) const {
    const auto found = find(key);
    return found ? found->boolean() : otherwise;
  }
  Value member(std::string_view key, dom::element value) const {
    return {value, *file_, place_.empty() ? std::string(key) : place_ + "." + std::string(key)};
  }
  Value element(size_t index, dom::element value) const {
    return {value, *file_, fmt::format("{}[{}]", place_, index)};
  }

  /// Runs `build`, whose InvalidArgument becomes an error of this place.
  template <class Build>
  auto at_this_place(const Build& build) const {
    try {
      return build();
    } catch (const InvalidArgument& error) {
      fail(error.what());
    }
  }

 private:
  dom::element element_;
  const std::string* file_;
  std::string place_;
};

/// Calls `use` with each element of the array `list`.
template <class Use>
void for_each(const Value& list, const Use& use) {
  size_t index = 0;
  for (const dom::element element : list.array()) use(list.element(index++, element));
}

Value type_of(const Value& part) { return part.at("type"); }

/// The string that a `Replace` looks for.
std::string_view replaced_string(const Value& part) {
  const Value pattern = part.at("pattern");
  const auto text = pattern.find("String");
  if (!text) pattern.unsupported("a pattern other than \"String\"");
  if (text->string().empty()) text->fail("expected at least one character");
  return text->string();
}

std::unique_ptr<Normalizer> read_normalizer(const Value& part) {
  const Value type = type_of(part);
  if (type.string() == "NFC") return std::make_unique<NfcNormalizer>();
  if (type.string() == "Replace") {
    return std::make_unique<ReplaceNormalizer>(replaced_string(part), part.at("content").string());
  }
  if (type.string() == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> parts;
    for_each(part.at("normalizers"), [&](const Value& inner) { parts.push_back(read_normalizer(inner)); });
    return std::make_unique<NormalizerSequence>(std::move(parts));
  }
  type.unsupported(in_quotes(type.string()));
}

/// A pattern that matches `text` alone.
std::string escaped(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view(R"(\^$.|?*+()[]{})").find(c) != std::string_view::npos) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

std::unique_ptr<PreTokenizer> read_pre_tokenizer(const Value& part) {
  const Value type = type_of(part);
  if (type.string() == "ByteLevel") {
    return std::make_unique<ByteLevelPreTokenizer>(part.at("add_prefix_space").boolean(),
                                                   part.flag("use_regex", true));
  }
  if (type.string() == "Split") {
    const Value pattern = part.at("pattern"), behavior = part.at("behavior");
    const auto regex = pattern.find("Regex"), text = pattern.find("String");
    if (!regex && !text) pattern.unsupported("a pattern other than \"Regex\" or \"String\"");
    using Behavior = SplitPreTokenizer::Behavior;
    const bool isolated = behavior.string() == "Isolated";
    if (!isolated && behavior.string() != "MergedWithPrevious") {
      behavior.unsupported(in_quotes(behavior.string()));
    }
    // Decides which pieces are matches, and Isolated keeps all alike.
    if (part.flag("invert", false) && !isolated) part.at("invert").unsupported("true");
    const Value& used = regex ? *regex : *text;
    return used.at_this_place([&] {
      return std::make_unique<SplitPreTokenizer>(
          Regex(regex ? std::string(regex->string()) : escaped(text->string())),
          isolated ? Behavior::isolated : Behavior::merged_with_previous);
    });
  }
  if (type.string() == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> parts;
    for_each(part.at("pretokenizers"),
             [&](const Value& inner) { parts.push_back(read_pre_tokenizer(inner)); });
    return std::make_unique<PreTokenizerSequence>(std::move(parts));
  }
  type.unsupported(in_quotes(type.string()));
}

std::unique_ptr<Decoder> read_decoder(const std::optional<Value>& part) {
  if (!part) return std::make_unique<SpaceDecoder>();
  if (type_of(*part).string() == "ByteLevel") return std::make_unique<ByteLevelDecoder>();
  std::vector<SpellingDecoder::Replacement> replacements;
  bool byte_fallback = false;
  const auto read = [&](const Value& step) {
    const Value type = type_of(step);
    if (type.string() == "Replace" && !byte_fallback) {
      replacements.emplace_back(replaced_string(step), step.at("content").string());
    } else if (type.string() == "ByteFallback") {
      byte_fallback = true;
    } else if (type.string() != "Fuse") {  // which joins what is joined anyway
      type.unsupported(in_quotes(type.string()));
    }
  };
  if (type_of(*part).string() == "Sequence") {
    for_each(part->at("decoders"), read);
  } else {
    read(*part);
  }
  return std::make_unique<SpellingDecoder>(std::move(replacements), byte_fallback);
}

/// Both spellings of a merge: ["a", "b"] and "a b".
Bpe::Merge read_merge(const Value& merge) {
  if (merge.is_string()) {
    const std::string_view text = merge.string();
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      merge.fail(fmt::format("expected two parts with a space between, got {}", in_quotes(text)));
    }
    return {text.substr(0, space), text.substr(space + 1)};
  }
  std::vector<std::string_view> parts;
  for_each(merge, [&](const Value& part) { parts.push_back(part.string()); });
  if (parts.size() != 2) merge.fail(fmt::format("expected two parts, got {}", parts.size()));
  return {parts[0], parts[1]};
}

std::vector<Bpe::Merge> read_merges(const Value& list) {
  std::vector<Bpe::Merge> merges;
  for_each(list, [&](const Value& merge) {
    if (merge.is_string() && merge.string().starts_with("#version")) return;
    merges.push_back(read_merge(merge));
  });
  return merges;
}

std::unique_ptr<Model> read_model(const Value& part) {
  // Files written before models had a type hold BPE when they hold merges.
  const auto type = part.find("type");
  if (!type && !part.find("merges")) part.fail("expected a member \"type\"");
  if (type && type->string() != "BPE") type->unsupported(in_quotes(type->string()));
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = part.find(key);
    if (affix && !affix->string().empty()) affix->unsupported(in_quotes(affix->string()));
  }
  const Value vocab = part.at("vocab"), merges = part.at("merges");
  std::vector<std::pair<std::string_view, uint32_t>> tokens;
  for (const dom::key_value_pair field : vocab.object()) {
    tokens.emplace_back(field.key, vocab.member(in_quotes(field.key), field.value).id());
  }
  Vocabulary vocabulary = vocab.at_this_place([&] { return Vocabulary(tokens); });
  BpeOptions options;
  options.ignore_merges = part.flag("ignore_merges", false);
  options.fuse_unknown = part.flag("fuse_unk", false);
  for (uint32_t byte = 0; byte < 256 && part.flag("byte_fallback", false); ++byte) {
    const std::string name = fallback_of_byte(static_cast<uint8_t>(byte));
    const auto id = vocabulary.id_of(name);
    if (!id) part.at("byte_fallback").fail(fmt::format("expected a token for each byte, got no {}", name));
    options.byte_ids.push_back(*id);
  }
  if (const auto unknown = part.find("unk_token")) {
    options.unknown = vocabulary.id_of(unknown->string());
    if (!options.unknown) options.missing_unknown = in_quotes(unknown->string());
  }
  const std::vector<Bpe::Merge> pairs = read_merges(merges);
  return merges.at_this_place([&]() -> std::unique_ptr<Model> {
    return std::make_unique<Bpe>(std::move(vocabulary), pairs, options);
  });
}

AddedTokens read_added_tokens(const std::optional<Value>& list, const Tokenizer::Parts& parts) {
  if (!list) return {};
  std::vector<AddedToken> tokens;
  std::unordered_set<uint32_t> ids;
  std::unordered_set<std::string_view> contents;
  for_each(*list, [&](const Value& entry) {
    AddedToken token;
    const Value id = entry.at("id"), content = entry.at("content");
    token.id = id.id();
    token.content = content.string();
    token.special = entry.flag("special", false);
    token.normalized = entry.flag("normalized", !token.special);
    token.single_word = entry.flag("single_word", false);
    token.lstrip = entry.flag("lstrip", false);
    token.rstrip = entry.flag("rstrip", false);
    if (token.content.empty()) content.fail("expected at least one character");
    if (!ids.insert(token.id).second) id.fail(fmt::format("{} occurs twice", token.id));
    if (!contents.insert(content.string()).second)
      content.fail(fmt::format("{} occurs twice", in_quotes(token.content)));
    const auto in_model = parts.model->vocabulary().id_of(token.content);
    if (in_model && *in_model != token.id) {
      id.fail(fmt::format("expected {} as in model.vocab, got {}", *in_model, token.id));
    }
    const auto other = parts.model->vocabulary().spelling(token.id);
    if (other && *other != token.content) {
      id.fail(fmt::format("{} is the id of {} in model.vocab", token.id, in_quotes(*other)));
    }
    tokens.push_back(std::move(token));
  });
  return list->at_this_place([&] { return AddedTokens(std::move(tokens), parts.normalizer.get()); });
}

/// The token that a template puts in front of a single text, or nothing.
std::optional<uint32_t> bos_of_template(const Value& part) {
  const Value single = part.at("single");
  std::optional<uint32_t> bos;
  bool text_seen = false;
  for_each(single, [&](const Value& item) {
    const auto special = item.find("SpecialToken");
    if (!special) {
      if (!item.find("Sequence")) item.fail("expected \"SpecialToken\" or \"Sequence\"");
      text_seen = true;
      return;
    }
    if (text_seen) return;  // what follows the text ends a text that is complete, which a prompt is not
    if (bos) item.unsupported("a second token in front");
    const std::string_view name = special->at("id").string();
    const Value ids = part.at("special_tokens").at(name).at("ids");
    std::vector<uint32_t> values;
    for_each(ids, [&](const Value& id) { values.push_back(id.id()); });
    if (values.size() != 1) ids.fail(fmt::format("expected one id, got {}", values.size()));
    bos = values[0];
  });
  return bos;
}

std::optional<uint32_t> read_post_processor(const Value& part) {
  const Value type = type_of(part);
  if (type.string() == "ByteLevel") return std::nullopt;  // moves offsets only
  if (type.string() == "TemplateProcessing") return bos_of_template(part);
  if (type.string() == "Sequence") {
    std::optional<uint32_t> bos;
    const Value list = part.at("processors");
    for_each(list, [&](const Value& inner) {
      const auto found = read_post_processor(inner);
      if (found && bos) inner.unsupported("a second token in front");
      if (found) bos = found;
    });
    return bos;
  }
  type.unsupported(in_quotes(type.string()));
}

/// The name of bos_token when add_bos_token asks for it.
std::optional<Value> read_config(const Value& config) {
  if (!config.flag("add_bos_token", false)) return std::nullopt;
  const Value token = config.at("bos_token");
  return token.is_object() ? token.at("content") : token;
}

dom::element parse_json(dom::parser& parser, std::string_view text, const std::string& file) {
  if (parser.allocate(text.size() + 1, kMaxNesting) != simdjson::SUCCESS) {
    throw FileError(file + ": too large to be read as JSON");
  }
  dom::element root;
  auto error = parser.parse(text.data(), text.size(), true).get(root);
  if (!error) return root;
  // No part is read from a fraction, so that one stands well for a number that is not JSON: it fails where it is read.
  const PlainJson plain = replace_foreign_numbers(text);
  if (!plain.numbers.empty()) error = parser.parse(plain.text).get(root);
  if (!error) return root;
  const std::string_view other = saved_instead(text);
  if (!other.empty()) throw FileError(fmt::format("{}: expected JSON, got {}", file, other));
  throw FileError(fmt::format("{}: not valid JSON: {}", file, simdjson::error_message(error)));
}

std::shared_ptr<const Tokenizer::Parts> read_parts(std::string_view text, const std::string& file,
                                                   std::string_view config_text,
                                                   const std::string& config_file) {
  dom::parser parser, config_parser;
  const Value root(parse_json(parser, text, file), file, "");
  auto parts = std::make_shared<Tokenizer::Parts>();
  if (const auto part = root.find("normalizer")) parts->normalizer = read_normalizer(*part);
  if (const auto part = root.find("pre_tokenizer")) parts->pre_tokenizer = read_pre_tokenizer(*part);
  parts->decoder = read_decoder(root.find("decoder"));
  parts->model = read_model(root.at("model"));
  parts->added = read_added_tokens(root.find("added_tokens"), *parts);
  const auto known = [&](uint32_t id) {
    return parts->added.find(id) != nullptr || parts->model->vocabulary().spelling(id).has_value();
  };
  if (const auto part = root.find("post_processor")) {
    parts->bos = read_post_processor(*part);
    if (parts->bos && !known(*parts->bos)) part->fail(fmt::format("the id {} is no token", *parts->bos));
  }
  if (!config_text.empty() && !parts->bos) {
    const Value config(parse_json(config_parser, config_text, config_file), config_file, "");
    if (const auto name = read_config(config)) {
      parts->bos = parts->added.id_of(name->string());
      if (!parts->bos) parts->bos = parts->model->vocabulary().id_of(name->string());
      if (!parts->bos) name->fail(fmt::format("{} is no token of {}", in_quotes(name->string()), file));
    }
  }
  return parts;
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json,
                          const std::filesystem::path& tokenizer_config_json) {
  const std::string text = read_text_file(tokenizer_json);
  if (tokenizer_config_json.empty()) return Tokenizer(read_parts(text, tokenizer_json.string(), {}, {}));
  const std::string config = read_text_file(tokenizer_config_json);
  if (config.empty())
    throw FileError(fmt::format("{}: expected JSON, got an empty file", tokenizer_config_json.string()));
  return Tokenizer(read_parts(text, tokenizer_json.string(), config, tokenizer_config_json.string()));
}

Tokenizer Tokenizer::load_folder(const std::filesystem::path& folder) {
  const std::filesystem::path config = folder / "tokenizer_config.json";
  std::error_code ignored;
  return load(folder / "tokenizer.json",
              std::filesystem::exists(config, ignored) ? config : std::filesystem::path());
}

Tokenizer Tokenizer::parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                           const std::string& name) {
  return Tokenizer(read_parts(tokenizer_json, name, tokenizer_config_json, name + " (config)"));
}

}  // namespace refrain::text
