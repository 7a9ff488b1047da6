#include "refrain/text/added_tokens.h"

#include <algorithm>

#include "refrain/text/unicode.h"

namespace refrain::text {

void AddedTokens::Trie::insert(std::string_view content, uint32_t token) {
  if (content.empty()) return;
  starts_[static_cast<uint8_t>(content.front())] = true;
  uint32_t node = 0;
  for (const char c : content) {
    const auto [edge, added] = next_.emplace(uint64_t{node} << 8 | static_cast<uint8_t>(c), nodes_);
    if (added) ++nodes_;
    node = edge->second;
  }
  ends_[node] = token;
}

std::pair<size_t, uint32_t> AddedTokens::Trie::longest(std::string_view text, size_t position) const {
  std::pair<size_t, uint32_t> best{0, 0};
  if (!starts_[static_cast<uint8_t>(text[position])]) return best;
  uint32_t node = 0;
  for (size_t i = position; i < text.size(); ++i) {
    const auto edge = next_.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[i]));
    if (edge == next_.end()) break;
    node = edge->second;
    const auto end = ends_.find(node);
    if (end != ends_.end()) best = {i + 1 - position, end->second};
  }
  return best;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer)
    : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    by_id_[tokens_[i].id] = i;
    ids_[tokens_[i].content] = tokens_[i].id;
    if (tokens_[i].special) special_.insert(tokens_[i].content);
    size_ = std::max(size_, tokens_[i].id + 1);
  }
  for (size_t index = 0; index < tokens_.size(); ++index) {
    AddedToken& token = tokens_[index];
    if (by_id_[token.id] != index) continue;
    token.spelling =
        token.normalized && normalizer != nullptr ? normalizer->apply(token.content) : token.content;
    (token.normalized ? normalized_ : raw_).insert(token.spelling, static_cast<uint32_t>(index));
  }
}

const AddedToken* AddedTokens::find(uint32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

std::optional<uint32_t> AddedTokens::id_of(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

void AddedTokens::split(std::string_view text, bool normalized, bool parse_special,
                        const Visitor& visit) const {
  const Trie& trie = normalized ? normalized_ : raw_;
  size_t done = 0;
  for (size_t position = 0; position < text.size() && !trie.empty();) {
    const auto [length, index] = trie.longest(text, position);
    if (length == 0) {
      ++position;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = position, end = position + length;
    position = end;
    if (!parse_special && special_.contains(token.content)) continue;
    if (token.single_word) {
      if (begin > 0 && is_word(previous_code_point(text, begin))) continue;
      size_t after = end;
      if (end < text.size() && is_word(next_code_point(text, after))) continue;
    }
    if (token.lstrip) {
      begin = std::max(begin, done);  // one that a token before has taken in part, or whole
      while (begin > done && is_white_space(previous_code_point(text, begin))) {
        do {
          --begin;
        } while ((static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80);
      }
    }
    if (token.rstrip) {
      for (size_t next = end; next < text.size() && is_white_space(next_code_point(text, next));) end = next;
    }
    if (done < begin) visit(text.substr(done, begin - done), std::nullopt);
    if (begin < end) visit({}, token.id);
    done = end;
  }
  if (done < text.size()) visit(text.substr(done), std::nullopt);
}

}  // namespace refrain::text
