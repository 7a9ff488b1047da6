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

void Tokenizer::Decoded::end_run() {
  if (run && first_invalid_utf8(std::string_view(bytes).substr(*run))) {
    const size_t count = bytes.size() - *run;
    bytes.resize(*run);
    for (size_t i = 0; i < count; ++i) append_utf8(0xFFFD, bytes);
  }
  run.reset();
}

bool Tokenizer::append_token(uint32_t id, DecodeSpecial special, bool first, Decoded& text) const {
  const AddedToken* const added = parts_->added.find(id);
  const auto spelling =
      added != nullptr ? std::string_view(added->spelling) : parts_->model->vocabulary().spelling(id);
  if (!spelling || (special == DecodeSpecial::skip && parts_->added.is_special(*spelling))) return false;
  if (!parts_->decoder->is_byte(*spelling)) {
    text.end_run();
  } else if (!text.run) {
    text.run = text.bytes.size();
  }
  parts_->decoder->append(*spelling, first, text.bytes);
  return true;
}

std::string Tokenizer::decode(std::span<const uint32_t> ids, DecodeSpecial special) const {
  Decoded decoded;
  bool first = true;
  for (const uint32_t id : ids) {
    if (append_token(id, special, first, decoded)) first = false;
  }
  decoded.end_run();
  if (!first_invalid_utf8(decoded.bytes)) return std::move(decoded.bytes);
  std::string text;
  append_lossy_utf8(decoded.bytes, true, text);
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
  const auto certain = std::string_view(held_.bytes).substr(0, held_.run.value_or(std::string::npos));
  const size_t taken = append_lossy_utf8(certain, false, text);
  held_.bytes.erase(0, taken);
  if (held_.run) *held_.run -= taken;
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  held_.end_run();
  append_lossy_utf8(held_.bytes, true, text);
  held_.bytes.clear();
  first_ = true;
  return text;
}

}  // namespace refrain::text
