// The tokens of a model: spelling to id and back. Immutable after construction.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace refrain::text {

/// Ids are indices of tables, so a file may not name arbitrarily large ones: sixteen times the largest
/// vocabulary in use.
constexpr uint32_t kMaxVocabulary = 1u << 22;

class Vocabulary {
 public:
  Vocabulary() = default;
  /// Copies the spellings. Throws InvalidArgument for an id of kMaxVocabulary or more, and for a spelling or
  /// an id that occurs twice.
  explicit Vocabulary(const std::vector<std::pair<std::string_view, uint32_t>>& tokens);
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::optional<uint32_t> id_of(std::string_view spelling) const;
  std::optional<std::string_view> spelling(uint32_t id) const;
  /// The largest id + 1.
  uint32_t size() const { return static_cast<uint32_t>(by_id_.size()); }

 private:
  std::vector<char> spellings_;  // by_id_ and ids_ point into it
  std::vector<std::string_view> by_id_;
  std::unordered_map<std::string_view, uint32_t> ids_;
};

}  // namespace refrain::text
