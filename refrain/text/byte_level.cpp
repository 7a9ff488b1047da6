#include "refrain/text/byte_level.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

#include "refrain/text/unicode.h"

namespace refrain::text {
namespace {

constexpr uint32_t kFirstSubstitute =
    0x100;  // the substitutes of unprintable bytes follow from here, in order
constexpr uint16_t kNoByte = 0xFFFF;

constexpr bool is_printable(uint32_t byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

struct Alphabet {
  std::array<uint16_t, 256> character{};
  std::array<uint16_t, kFirstSubstitute + 68> byte{};  // 68 bytes are not printable
};

constexpr Alphabet make_alphabet() {
  Alphabet out;
  for (uint16_t& byte : out.byte) byte = kNoByte;
  uint32_t substitute = kFirstSubstitute;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const uint32_t character = is_printable(byte) ? byte : substitute++;
    out.character[byte] = static_cast<uint16_t>(character);
    out.byte[character] = static_cast<uint16_t>(byte);
  }
  return out;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

void append_byte_characters(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) append_utf8(kAlphabet.character[static_cast<uint8_t>(byte)], out);
}

void append_bytes_of(std::string_view token, std::string& out) {
  const size_t before = out.size();
  for (size_t position = 0; position < token.size();) {
    const char32_t character = next_code_point(token, position);
    if (character >= kAlphabet.byte.size() || kAlphabet.byte[character] == kNoByte) {
      out.resize(before);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(kAlphabet.byte[character]));
  }
}

std::string fallback_of_byte(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

std::optional<uint8_t> byte_of_fallback(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  uint8_t byte = 0;
  const char* const end = token.data() + 5;
  const auto [stopped, error] = std::from_chars(token.data() + 3, end, byte, 16);
  if (error != std::errc() || stopped != end) return std::nullopt;
  return byte;
}

}  // namespace refrain::text
