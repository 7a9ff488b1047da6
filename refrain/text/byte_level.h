// The alphabet of byte-level vocabularies: each of the 256 bytes written as one printable character.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace refrain::text {

/// Appends the characters of `bytes` to `out` as UTF-8.
void append_byte_characters(std::string_view bytes, std::string& out);

/// Appends the bytes that the characters of `token` stand for; when one of them stands for none, `token`
/// itself.
void append_bytes_of(std::string_view token, std::string& out);

/// "<0x0A>": how vocabularies of characters name a byte.
std::string fallback_of_byte(uint8_t byte);
/// The byte that `token` names so, if it does.
std::optional<uint8_t> byte_of_fallback(std::string_view token);

}  // namespace refrain::text
