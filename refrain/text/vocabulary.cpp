#include "refrain/text/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>

#include "refrain/core/error.h"

namespace refrain::text {

Vocabulary::Vocabulary(const std::vector<std::pair<std::string_view, uint32_t>>& tokens) {
  size_t total_bytes = 0;
  uint32_t size = 0;
  for (const auto& [spelling, id] : tokens) {
    if (id >= kMaxVocabulary) {
      throw InvalidArgument(fmt::format("expected ids below {}, got {}", kMaxVocabulary, id));
    }
    total_bytes += spelling.size();
    size = std::max(size, id + 1);
  }
  spellings_.reserve(total_bytes +
                     1);  // so that it never moves, and that even an empty spelling has an address
  spellings_.push_back('\0');
  by_id_.resize(size);
  ids_.reserve(tokens.size());
  for (const auto& [spelling, id] : tokens) {
    const char* const begin = spellings_.data() + spellings_.size();
    spellings_.insert(spellings_.end(), spelling.begin(), spelling.end());
    const std::string_view copy(begin, spelling.size());
    if (by_id_[id].data() != nullptr) throw InvalidArgument(fmt::format("two tokens have the id {}", id));
    by_id_[id] = copy;
    if (!ids_.emplace(copy, id).second) {
      throw InvalidArgument(fmt::format("the token of id {} occurs twice", id));
    }
  }
}

std::optional<uint32_t> Vocabulary::id_of(std::string_view spelling) const {
  const auto found = ids_.find(spelling);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

std::optional<std::string_view> Vocabulary::spelling(uint32_t id) const {
  if (id >= by_id_.size() || by_id_[id].data() == nullptr) return std::nullopt;
  return by_id_[id];
}

}  // namespace refrain::text
