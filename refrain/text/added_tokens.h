// Tokens found in the text itself, before the model sees it: leftmost first, of those the longest.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "refrain/text/normalizer.h"

namespace refrain::text {

struct AddedToken {
  uint32_t id = 0;
  std::string content{};
  std::string
      spelling{};        ///< what decoding sees: the content, normalized if `normalized`; set by AddedTokens
  bool special = false;  ///< dropped by decoding, found in text only when asked for
  bool normalized = false;   ///< looked for after normalization
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space after it
};

class AddedTokens {
 public:
  /// Called with a stretch of plain text, or with the id of a token.
  using Visitor = std::function<void(std::string_view text, std::optional<uint32_t> id)>;

  AddedTokens() = default;
  /// `normalizer` may be null. Of tokens that share a content, an id, or what is looked for, the last counts.
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer);

  const AddedToken* find(uint32_t id) const;
  std::optional<uint32_t> id_of(std::string_view content) const;
  bool is_special(std::string_view content) const { return special_.contains(std::string(content)); }
  /// The largest id + 1, or 0.
  uint32_t size() const { return size_; }

  /// Cuts `text` at the tokens that are looked for before normalization, or after it. Special tokens that are
  /// not `parse_special` stay text, but still hide what overlaps them.
  void split(std::string_view text, bool normalized, bool parse_special, const Visitor& visit) const;

 private:
  /// Longest content that starts at a place.
  class Trie {
   public:
    void insert(std::string_view content, uint32_t token);
    /// Length and token of the longest match at `position`; length 0 for none.
    std::pair<size_t, uint32_t> longest(std::string_view text, size_t position) const;
    bool empty() const { return next_.empty(); }

   private:
    std::array<bool, 256> starts_{};
    std::unordered_map<uint64_t, uint32_t> next_;  // node << 8 | byte: node
    std::unordered_map<uint32_t, uint32_t> ends_;  // node: token
    uint32_t nodes_ = 1;
  };

  std::vector<AddedToken> tokens_;
  std::unordered_map<uint32_t, size_t> by_id_;
  std::unordered_map<std::string, uint32_t> ids_;
  std::unordered_set<std::string> special_;
  Trie raw_, normalized_;
  uint32_t size_ = 0;
};

}  // namespace refrain::text
