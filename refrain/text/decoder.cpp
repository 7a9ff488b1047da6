#include "refrain/text/decoder.h"

#include "refrain/text/byte_level.h"
#include "refrain/text/normalizer.h"

namespace refrain::text {

void ByteLevelDecoder::append(std::string_view spelling, bool /*first*/, std::string& bytes) const {
  append_bytes_of(spelling, bytes);
}

std::string SpellingDecoder::replace_all(std::string_view spelling) const {
  std::string text(spelling);
  for (const auto& [from, to] : replacements_) text = replaced(text, from, to);
  return text;
}

void SpellingDecoder::append(std::string_view spelling, bool /*first*/, std::string& bytes) const {
  const std::string text = replace_all(spelling);
  if (const auto byte = byte_fallback_ ? byte_of_fallback(text) : std::nullopt) {
    bytes.push_back(static_cast<char>(*byte));
  } else {
    bytes.append(text);
  }
}

bool SpellingDecoder::is_byte(std::string_view spelling) const {
  return byte_fallback_ && byte_of_fallback(replace_all(spelling)).has_value();
}

void SpaceDecoder::append(std::string_view spelling, bool first, std::string& bytes) const {
  if (!first) bytes.push_back(' ');
  bytes.append(spelling);
}

}  // namespace refrain::text
