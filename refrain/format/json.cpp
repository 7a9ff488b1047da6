// The tree behind Json: parsed by simdjson, then copied once into nodes that keep the order of keys.
#include "refrain/format/json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "refrain/core/error.h"
#include "refrain/core/foreign_text.h"
#include "refrain/core/mapped_file.h"

namespace refrain::format {

struct Json::Node {
  Kind kind = Kind::null;
  bool boolean = false;
  bool beyond_i64 = false;  // an integer that is kept in `number` only
  int64_t integer = 0;
  double number = 0;
  std::string text;               // of a string; of a number, its spelling where 64 bits do not hold it
  std::vector<std::string> keys;  // of an object, in the order of the file
  std::vector<Node> items;        // elements of an array, or values that belong to `keys`
  std::vector<uint32_t> sorted;   // indices into `keys` in alphabetical order
};

struct Json::Document {
  std::string file;
  Node root;
};

namespace {

constexpr size_t kShownBytes = 100;

const char* article_and_name(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return "a boolean";
    case Json::Kind::integer:
      return "an integer";
    case Json::Kind::number:
      return "a number";
    case Json::Kind::string:
      return "a string";
    case Json::Kind::array:
      return "an array";
    case Json::Kind::object:
      return "an object";
  }
  return "";
}

/// `key` below `field`, on one line whatever the key holds.
std::string join(const std::string& field, std::string_view key) {
  const bool plain = key.size() <= kShownBytes &&
                     std::ranges::all_of(key, [](unsigned char c) { return c > 0x20 && c != 0x7F; });
  const std::string shown = plain ? std::string(key) : in_quotes(key);
  return field.empty() ? shown : field + '.' + shown;
}

/// The spelling of a number, cut when long.
std::string shown_number(const std::string& text) {
  return text.size() <= kShownBytes ? text : text.substr(0, kShownBytes) + "...";
}

}  // namespace

std::string in_quotes(std::string_view name) {
  std::string text = "\"";
  size_t shown = std::min(name.size(), kShownBytes);
  while (shown < name.size() && shown > 0 && (static_cast<unsigned char>(name[shown]) & 0xC0u) == 0x80u) {
    --shown;  // do not cut a UTF-8 sequence
  }
  for (const char c : name.substr(0, shown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      text += fmt::format("\\u{:04x}", byte);
    } else {
      if (c == '"' || c == '\\') text += '\\';
      text += c;
    }
  }
  return text + (shown < name.size() ? "\"..." : "\"");
}

Json Json::load(const std::filesystem::path& path, size_t limit_bytes) {
  return parse(read_text_file(path, limit_bytes), path.string());
}

Json Json::parse(std::string_view text, std::string file, size_t max_depth) {
  struct Builder {
    const std::string& file;
    size_t max_depth;
    std::span<const ForeignNumber> foreign;  // those ahead
    size_t numbers = 0;                      // behind

    /// Whether the number that comes next is a foreign one, which then fills `node`.
    bool fill_foreign(Node& node) {
      if (foreign.empty() || foreign[0].index != numbers++) return false;
      node.text = foreign[0].text;
      foreign = foreign.subspan(1);
      node.beyond_i64 = node.text.find_first_not_of("-0123456789") == node.text.npos;
      node.kind = node.beyond_i64 ? Kind::integer : Kind::number;
      node.number = std::numeric_limits<double>::quiet_NaN();
      if (node.beyond_i64) {
        std::from_chars(node.text.data(), node.text.data() + node.text.size(), node.number);
      }
      return true;
    }

    size_t inside(size_t depth) const {
      if (depth == max_depth)
        throw FileError(fmt::format("{}: expected at most {} levels, got more", file, max_depth));
      return depth + 1;
    }

    void fill(Node& node, const simdjson::dom::element& element, const std::string& field, size_t depth) {
      using simdjson::dom::element_type;
      switch (element.type()) {
        case element_type::NULL_VALUE:
          node.kind = Kind::null;
          break;
        case element_type::BOOL:
          node.kind = Kind::boolean;
          node.boolean = bool(element);
          break;
        case element_type::INT64:
          ++numbers;
          node.kind = Kind::integer;
          node.integer = int64_t(element);
          node.number = static_cast<double>(node.integer);
          break;
        case element_type::UINT64:  // only values that int64_t does not hold
          ++numbers;
          node.kind = Kind::integer;
          node.beyond_i64 = true;
          node.number = static_cast<double>(uint64_t(element));
          break;
        case element_type::DOUBLE:
          if (fill_foreign(node)) break;
          node.kind = Kind::number;
          node.number = double(element);
          break;
        case element_type::STRING:
          node.kind = Kind::string;
          node.text = std::string_view(element);
          break;
        case element_type::ARRAY:
          node.kind = Kind::array;
          depth = inside(depth);
          for (const simdjson::dom::element item : simdjson::dom::array(element)) {
            fill(node.items.emplace_back(), item, field, depth);
          }
          break;
        case element_type::OBJECT:
          node.kind = Kind::object;
          fill_object(node, simdjson::dom::object(element), field, inside(depth));
          break;
      }
    }

    void fill_object(Node& node, const simdjson::dom::object& object, const std::string& field,
                     size_t depth) {
      for (const auto [key, value] : object) {
        node.keys.emplace_back(key);
        node.sorted.push_back(static_cast<uint32_t>(node.sorted.size()));
        fill(node.items.emplace_back(), value, join(field, key), depth);
      }
      std::ranges::sort(node.sorted, {}, [&](uint32_t i) -> const std::string& { return node.keys[i]; });
    }
  };

  auto document = std::make_shared<Document>();
  document->file = std::move(file);
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  // The parser's own limit stops hostile depth early; it does not count empty containers.
  simdjson::error_code error = parser.allocate(text.size() + 1, max_depth + 1);
  if (!error) error = parser.parse(text.data(), text.size()).get(root);
  PlainJson plain;
  if (error) plain = replace_foreign_numbers(text);
  if (!plain.numbers.empty()) error = parser.parse(plain.text).get(root);
  if (error) {
    std::string got(saved_instead(text));
    if (got.empty()) got = fmt::format("an error: {}", simdjson::error_message(error));
    throw FileError(fmt::format("{}: expected JSON, got {}", document->file, got));
  }
  Builder{document->file, max_depth, plain.numbers}.fill(document->root, root, "", 0);
  const Node* node = &document->root;
  return Json(std::move(document), node, "");
}

Json::Kind Json::kind() const { return node_->kind; }

const std::string& Json::file() const { return document_->file; }

std::string Json::describe() const {
  switch (node_->kind) {
    case Kind::boolean:
      return node_->boolean ? "true" : "false";
    case Kind::integer:
    case Kind::number:
      if (!node_->text.empty()) return shown_number(node_->text);
      if (node_->kind == Kind::number) return fmt::format("{}", node_->number);
      return node_->beyond_i64 ? fmt::format("{:.0f}", node_->number) : std::to_string(node_->integer);
    case Kind::string:
      return in_quotes(node_->text);
    default:
      return article_and_name(node_->kind);
  }
}

void Json::fail(const std::string& what) const {
  if (field_.empty()) throw FileError(file() + ": " + what);
  throw FileError(file() + ": " + field_ + ": " + what);
}

const Json& Json::expect(Kind kind) const {
  if (node_->kind != kind) fail(fmt::format("expected {}, got {}", article_and_name(kind), describe()));
  return *this;
}

bool Json::as_bool() const { return expect(Kind::boolean).node_->boolean; }

uint32_t Json::as_u32(uint32_t least, uint32_t most) const {
  return static_cast<uint32_t>(as_i64(least, most));
}

int64_t Json::as_i64(int64_t least, int64_t most) const {
  expect(Kind::integer);
  if (node_->beyond_i64 || node_->integer < least || node_->integer > most) {
    fail(fmt::format("expected an integer in [{}, {}], got {}", least, most, describe()));
  }
  return node_->integer;
}

double Json::as_f64() const {
  if (!is_number()) expect(Kind::number);
  if (!std::isfinite(node_->number)) fail(fmt::format("expected a number of 64 bits, got {}", describe()));
  return node_->number;
}

const std::string& Json::as_string() const { return expect(Kind::string).node_->text; }

size_t Json::size() const {
  if (!is_array()) expect(Kind::object);
  return node_->items.size();
}

std::vector<Json> Json::items() const {
  expect(Kind::array);
  std::vector<Json> result;
  result.reserve(node_->items.size());
  for (size_t i = 0; i < node_->items.size(); ++i) {
    result.push_back(Json(document_, &node_->items[i], fmt::format("{}[{}]", field_, i)));
  }
  return result;
}

const std::vector<std::string>& Json::keys() const { return expect(Kind::object).node_->keys; }

std::optional<Json> Json::member(std::string_view key) const {
  expect(Kind::object);
  const auto name_of = [&](uint32_t i) -> std::string_view { return node_->keys[i]; };
  const auto found = std::ranges::equal_range(node_->sorted, key, {}, name_of);
  if (found.size() > 1) fail(fmt::format("expected distinct keys, got {} twice", in_quotes(key)));
  if (found.empty()) return std::nullopt;
  return Json(document_, &node_->items[found.front()], join(field_, key));
}

Json Json::at(std::string_view key) const {
  auto found = member(key);
  if (!found) fail(fmt::format("expected a member {}, got none", in_quotes(key)));
  return *std::move(found);
}

std::optional<Json> Json::find(std::string_view key) const {
  auto found = member(key);
  if (found && found->is_null()) found.reset();
  return found;
}

bool Json::boolean_or(std::string_view key, bool fallback) const {
  const auto value = find(key);
  return value ? value->as_bool() : fallback;
}

uint32_t Json::u32_or(std::string_view key, uint32_t fallback, uint32_t least, uint32_t most) const {
  const auto value = find(key);
  return value ? value->as_u32(least, most) : fallback;
}

double Json::f64_or(std::string_view key, double fallback) const {
  const auto value = find(key);
  return value ? value->as_f64() : fallback;
}

std::string Json::string_or(std::string_view key, std::string fallback) const {
  const auto value = find(key);
  return value ? value->as_string() : std::move(fallback);
}

std::optional<Json> find_block(const Json& object, std::string_view key) {
  auto block = object.find(key);
  if (block && block->expect(Json::Kind::object).size() == 0) block.reset();
  return block;
}

}  // namespace refrain::format
