#include "refrain/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "refrain/core/error.h"
#include "refrain/text/tokenizer_parts.h"
#include "refrain/text/unicode.h"

namespace refrain::text {
namespace {

// Positions in a piece are 32-bit, and every byte of the text may become two in the byte alphabet.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

}  // namespace

std::vector<uint32_t> Tokenizer::encode(std::string_view utf8, SpecialTokens special) const {
  if (utf8.size() > kMaxTextBytes) {
    throw InvalidArgument(
        fmt::format("[encode] text: expected at most {} bytes, got {}", kMaxTextBytes, utf8.size()));
  }
  if (const auto offset = first_invalid_utf8(utf8)) {
    throw InvalidArgument(
        fmt::format("[encode] text: expected UTF-8, got an invalid sequence at byte {}", *offset));
  }
  const bool parse_special = special == SpecialTokens::on;
  std::vector<uint32_t> ids;
  const auto plain = [&](std::string_view text) {
    Pieces pieces{std::string(text)};
    if (parts_->pre_tokenizer) parts_->pre_tokenizer->apply(pieces);
    parts_->model->tokenize(pieces.views(), ids);
  };
  const auto after_normalization = [&](std::string_view text, std::optional<uint32_t> id) {
    if (id) {
      ids.push_back(*id);
    } else {
      plain(text);
    }
  };
  parts_->added.split(utf8, false, parse_special, [&](std::string_view text, std::optional<uint32_t> id) {
    if (id) {
      ids.push_back(*id);
    } else if (parts_->normalizer) {
      parts_->added.split(parts_->normalizer->apply(text), true, parse_special, after_normalization);
    } else {
      parts_->added.split(text, true, parse_special, after_normalization);
    }
  });
  return ids;
}

std::optional<uint32_t> Tokenizer::bos() const { return parts_->bos; }

bool Tokenizer::append_token(uint32_t id, DecodeSpecial special, bool first, std::string& bytes) const {
  const AddedToken* const added = parts_->added.find(id);
  const auto spelling =
      added != nullptr ? std::string_view(added->spelling) : parts_->model->vocabulary().spelling(id);
  if (!spelling || (special == DecodeSpecial::skip && parts_->added.is_special(*spelling))) return false;
  parts_->decoder->append(*spelling, first, bytes);
  return true;
}

std::string Tokenizer::decode(std::span<const uint32_t> ids, DecodeSpecial special) const {
  std::string bytes;
  bool first = true;
  for (const uint32_t id : ids) {
    if (append_token(id, special, first, bytes)) first = false;
  }
  if (!first_invalid_utf8(bytes)) return bytes;
  std::string text;
  append_lossy_utf8(bytes, true, text);
  return text;
}

size_t Tokenizer::vocab_size() const {
  return std::max(parts_->added.size(), parts_->model->vocabulary().size());
}

bool Tokenizer::has_spelling(uint32_t id) const {
  return parts_->added.find(id) != nullptr || parts_->model->vocabulary().spelling(id).has_value();
}

bool Tokenizer::is_special(uint32_t id) const {
  const AddedToken* const added = parts_->added.find(id);
  if (added != nullptr) return parts_->added.is_special(added->spelling);
  const auto spelling = parts_->model->vocabulary().spelling(id);
  return spelling && parts_->added.is_special(*spelling);
}

std::optional<uint32_t> Tokenizer::id_of(std::string_view token) const {
  if (const auto id = parts_->added.id_of(token)) return id;
  return parts_->model->vocabulary().id_of(token);
}

std::string StreamDecoder::push(uint32_t id) {
  if (tokenizer_.append_token(id, special_, first_, held_)) first_ = false;
  std::string text;
  held_.erase(0, append_lossy_utf8(held_, false, text));
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  append_lossy_utf8(held_, true, text);
  held_.clear();
  first_ = true;
  return text;
}

}  // namespace refrain::text
