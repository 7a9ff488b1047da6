// JSON files of a model folder as trees of checked values: every accessor that fails names file and field.
// Reading only. Strict: UTF-8, bounded depth; but a key that an object has twice, and numbers that Python writes and JSON
// or 64 bits do not hold (NaN, Infinity, 10^30), fail only where they are read. Not for files of tens of megabytes
// (tokenizer.json), whose reader works on the parser directly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace refrain::format {

/// `name` in double quotes, with control characters escaped and cut after about 100 bytes: one line in a
/// message.
std::string in_quotes(std::string_view name);

/// A value with its place. Cheap to copy; keeps the document alive.
///
///     const Json config = Json::load(folder / "config.json");
///     const uint32_t layers = config.u32("num_hidden_layers", 1, 1024);
///     const double theta = config.f64_or("rope_theta", 10000.0);
///     if (const auto rope = config.find("rope_scaling")) ... rope->string("rope_type") ...
///
/// A member that is null counts as absent in `find`, `has` and the `_or` forms. All failures are FileErrors
/// such as `config.json: rope_scaling.factor: expected a number, got a string`.
class Json {
 public:
  enum class Kind { null, boolean, integer, number, string, array, object };

  /// A tree takes up to eighty times its text; config files are a few kilobytes.
  static constexpr size_t kDefaultLimitBytes = size_t{4} << 20;
  static constexpr size_t kMaxDepth = 64;

  /// Reads a file. Throws FileError when it cannot be read, exceeds `limit_bytes` or is not strict JSON.
  static Json load(const std::filesystem::path& path, size_t limit_bytes = kDefaultLimitBytes);
  /// Reads `text`; `file` stands for the path in messages. Throws FileError as `load`.
  static Json parse(std::string_view text, std::string file, size_t max_depth = kMaxDepth);

  Kind kind() const;
  bool is_null() const { return kind() == Kind::null; }
  bool is_bool() const { return kind() == Kind::boolean; }
  bool is_number() const { return kind() == Kind::integer || kind() == Kind::number; }
  bool is_integer() const { return kind() == Kind::integer; }
  bool is_string() const { return kind() == Kind::string; }
  bool is_array() const { return kind() == Kind::array; }
  bool is_object() const { return kind() == Kind::object; }

  /// The value itself, of the type asked for.
  bool as_bool() const;
  uint32_t as_u32(uint32_t least = 0, uint32_t most = std::numeric_limits<uint32_t>::max()) const;
  int64_t as_i64(int64_t least = std::numeric_limits<int64_t>::min(),
                 int64_t most = std::numeric_limits<int64_t>::max()) const;
  /// Integers too; always finite.
  double as_f64() const;
  const std::string& as_string() const;

  /// Number of elements of an array or members of an object.
  size_t size() const;
  /// Elements of an array.
  std::vector<Json> items() const;
  /// Keys of an object in the order of the file.
  const std::vector<std::string>& keys() const;

  /// Whether this object has the member and it is not null.
  bool has(std::string_view key) const { return find(key).has_value(); }
  /// Member of this object; nothing when absent or null.
  std::optional<Json> find(std::string_view key) const;
  /// Member of this object, possibly null. Throws FileError when absent.
  Json at(std::string_view key) const;

  /// Required members.
  bool boolean(std::string_view key) const { return at(key).as_bool(); }
  uint32_t u32(std::string_view key, uint32_t least = 0,
               uint32_t most = std::numeric_limits<uint32_t>::max()) const {
    return at(key).as_u32(least, most);
  }
  double f64(std::string_view key) const { return at(key).as_f64(); }
  std::string string(std::string_view key) const { return at(key).as_string(); }
  Json object(std::string_view key) const { return at(key).expect(Kind::object); }
  Json array(std::string_view key) const { return at(key).expect(Kind::array); }

  /// Optional members: `fallback` when absent or null, FileError when of another type or out of range.
  bool boolean_or(std::string_view key, bool fallback) const;
  uint32_t u32_or(std::string_view key, uint32_t fallback, uint32_t least = 0,
                  uint32_t most = std::numeric_limits<uint32_t>::max()) const;
  double f64_or(std::string_view key, double fallback) const;
  std::string string_or(std::string_view key, std::string fallback) const;

  /// This value if it is of `kind`, else FileError.
  const Json& expect(Kind kind) const;
  /// A FileError about this value: `file: field: what`.
  [[noreturn]] void fail(const std::string& what) const;
  /// `a number`, `"text"`, `an object`: for messages.
  std::string describe() const;
  /// Path of the file, and of the value in it (`rope_scaling.factor`, empty for the root).
  const std::string& file() const;
  const std::string& field() const { return field_; }

 private:
  struct Node;
  struct Document;
  Json(std::shared_ptr<const Document> document, const Node* node, std::string field)
      : document_(std::move(document)), node_(node), field_(std::move(field)) {}
  std::optional<Json> member(std::string_view key) const;

  std::shared_ptr<const Document> document_;
  const Node* node_;
  std::string field_;
};

/// The object `key`; nothing where it is absent, null or empty. Throws FileError for anything else.
std::optional<Json> find_block(const Json& object, std::string_view key);

}  // namespace refrain::format
