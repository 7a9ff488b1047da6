// Code points: UTF-8, general categories and the few properties that tokenizers ask for.
// The tables follow the Python package `tokenizers` (see unicode_tables.inc), not the system's libraries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace refrain::text {

struct CodePointRange {
  uint32_t first = 0;
  uint32_t last = 0;  ///< inclusive
};

/// Offset of the first byte that no valid UTF-8 sequence covers, or nothing.
std::optional<size_t> first_invalid_utf8(std::string_view bytes);

/// The code point at `position`, which moves past it. `text` is valid and `position` a boundary before its
/// end.
char32_t next_code_point(std::string_view text, size_t& position);

/// The code point that ends at `position` > 0 of valid UTF-8.
char32_t previous_code_point(std::string_view text, size_t position);

void append_utf8(char32_t code_point, std::string& out);

/// Appends `bytes` to `out`, each maximal part of an ill-formed sequence as one U+FFFD, and returns how many
/// bytes were taken. Without `final`, up to three bytes that may be the beginning of a sequence are left.
size_t append_lossy_utf8(std::string_view bytes, bool final, std::string& out);

/// A set of general categories, one bit each.
using CategorySet = uint32_t;

/// `L`, `Lu`, `N`, …; nothing for any other name.
std::optional<CategorySet> category_set(std::string_view name);

/// Whether the category of `code_point` belongs to `set`.
bool in_categories(char32_t code_point, CategorySet set);

/// The code points of `set`, ascending and disjoint. Surrogates count as unassigned.
std::vector<CodePointRange> category_ranges(CategorySet set);

/// Code points of `set` that Unicode 14 put elsewhere, provided that it put no others into `set`.
std::optional<std::vector<CodePointRange>> ranges_added_since_unicode_14(CategorySet set);

bool is_white_space(char32_t code_point);
std::vector<CodePointRange> white_space_ranges();

/// Letters, marks, digits, connectors and what else words are made of.
bool is_word(char32_t code_point);

/// Code points that normalization to NFC leaves alone, together with what stands on their two sides.
bool is_nfc_inert(char32_t code_point);

}  // namespace refrain::text
