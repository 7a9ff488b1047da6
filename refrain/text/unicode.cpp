#include "refrain/text/unicode.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace refrain::text {
namespace {

struct Recategorized {
  uint32_t first;
  uint32_t last;
  uint32_t category_then;
};

#include "refrain/text/unicode_tables.inc"

// In the order of the generated table.
constexpr std::array<std::string_view, 29> kCategoryNames = {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"};
constexpr uint32_t kLastCodePoint = 0x10FFFF;

uint32_t category_of(char32_t code_point) {
  const uint32_t key = static_cast<uint32_t>(code_point) << 5 | 31;
  return *std::prev(std::upper_bound(std::begin(kCategoryRuns), std::end(kCategoryRuns), key)) & 31;
}

template <size_t n>
bool in_ranges(const CodePointRange (&ranges)[n], char32_t code_point) {
  const auto after =
      std::upper_bound(std::begin(ranges), std::end(ranges), static_cast<uint32_t>(code_point),
                       [](uint32_t value, const CodePointRange& r) { return value < r.first; });
  return after != std::begin(ranges) && code_point <= std::prev(after)->last;
}

void append_range(std::vector<CodePointRange>& ranges, CodePointRange range) {
  if (!ranges.empty() && ranges.back().last + 1 == range.first) {
    ranges.back().last = range.last;
  } else {
    ranges.push_back(range);
  }
}

/// What stands at `position`: the length of a valid sequence, or the negated length of the maximal part of an
/// ill-formed one; `truncated` tells that the text ends inside a sequence that was valid so far.
int sequence_at(std::string_view text, size_t position, bool& truncated) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[position + i]); };
  truncated = false;
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and what lies past U+10FFFF.
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (int i = 1; i < length; ++i) {
    if (position + static_cast<size_t>(i) >= text.size()) {
      truncated = true;
      return -i;
    }
    if (byte(static_cast<size_t>(i)) < low || byte(static_cast<size_t>(i)) > high) return -i;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace

std::optional<size_t> first_invalid_utf8(std::string_view bytes) {
  if (bytes.empty() || simdjson::validate_utf8(bytes.data(), bytes.size())) return std::nullopt;
  for (size_t position = 0; position < bytes.size();) {
    bool truncated = false;
    const int length = sequence_at(bytes, position, truncated);
    if (length < 0) return position;
    position += static_cast<size_t>(length);
  }
  return std::nullopt;
}

char32_t next_code_point(std::string_view text, size_t& position) {
  const auto byte = [&] { return static_cast<uint8_t>(text[position++]); };
  const uint8_t lead = byte();
  if (lead < 0x80) return lead;
  char32_t code_point = lead < 0xE0 ? lead & 0x1Fu : lead < 0xF0 ? lead & 0x0Fu : lead & 0x07u;
  for (int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3; more > 0; --more) {
    code_point = code_point << 6 | (byte() & 0x3Fu);
  }
  return code_point;
}

char32_t previous_code_point(std::string_view text, size_t position) {
  do {
    --position;
  } while ((static_cast<uint8_t>(text[position]) & 0xC0) == 0x80);
  return next_code_point(text, position);
}

void append_utf8(char32_t code_point, std::string& out) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

size_t append_lossy_utf8(std::string_view bytes, bool final, std::string& out) {
  size_t position = 0;
  while (position < bytes.size()) {
    bool truncated = false;
    const int length = sequence_at(bytes, position, truncated);
    if (length > 0) {
      out.append(bytes.substr(position, static_cast<size_t>(length)));
      position += static_cast<size_t>(length);
      continue;
    }
    if (truncated && !final) break;
    out.append("\xEF\xBF\xBD");
    position += static_cast<size_t>(-length);
  }
  return position;
}

std::optional<CategorySet> category_set(std::string_view name) {
  CategorySet set = 0;
  if (name.empty()) return std::nullopt;
  for (size_t i = 0; i < kCategoryNames.size(); ++i) {
    if (kCategoryNames[i] == name || (name.size() == 1 && kCategoryNames[i][0] == name[0])) set |= 1u << i;
  }
  if (set == 0) return std::nullopt;
  return set;
}

bool in_categories(char32_t code_point, CategorySet set) { return (set >> category_of(code_point) & 1) != 0; }

std::vector<CodePointRange> category_ranges(CategorySet set) {
  std::vector<CodePointRange> ranges;
  for (size_t i = 0; i < std::size(kCategoryRuns); ++i) {
    if ((set >> (kCategoryRuns[i] & 31) & 1) == 0) continue;
    const uint32_t last = i + 1 < std::size(kCategoryRuns) ? (kCategoryRuns[i + 1] >> 5) - 1 : kLastCodePoint;
    append_range(ranges, {kCategoryRuns[i] >> 5, last});
  }
  return ranges;
}

std::optional<std::vector<CodePointRange>> ranges_added_since_unicode_14(CategorySet set) {
  std::vector<CodePointRange> ranges;
  for (const Recategorized& moved : kRecategorized) {
    const bool then = (set >> moved.category_then & 1) != 0;
    for (uint32_t code_point = moved.first; code_point <= moved.last; ++code_point) {
      const bool now = in_categories(code_point, set);
      if (then && !now) return std::nullopt;
      if (now && !then) append_range(ranges, {code_point, code_point});
    }
  }
  return ranges;
}

bool is_white_space(char32_t code_point) { return in_ranges(kWhiteSpace, code_point); }

std::vector<CodePointRange> white_space_ranges() { return {std::begin(kWhiteSpace), std::end(kWhiteSpace)}; }

bool is_word(char32_t code_point) {
  static constexpr CategorySet kWordCategories = 0b1011'1111'1111;  // Lu … Nl, Pc: all before No, and Pc
  // Joiners, and the circled and squared letters, which are symbols that count as alphabetic.
  static constexpr CodePointRange kMore[] = {
      {0x200C, 0x200D}, {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
  return in_categories(code_point, kWordCategories) || in_ranges(kMore, code_point);
}

bool is_nfc_inert(char32_t code_point) { return in_ranges(kNfcInert, code_point); }

}  // namespace refrain::text
