// Regular expressions: translation, properties against PCRE2 and against the tables, limits.
#include "refrain/text/regex.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/text/unicode.h"
#include "tests/refusal.h"

namespace refrain::text {
namespace {

using Matches = std::vector<std::pair<size_t, size_t>>;

Matches matches(const Regex& regex, std::string_view text) {
  Matches out;
  regex.for_each_match(text, [&](size_t begin, size_t end) { out.emplace_back(begin, end); });
  return out;
}

// Past it there are tags, variation selectors and private characters only.
constexpr char32_t kLastTested = 0x32400;

std::string tested_code_points() {
  std::string out;
  for (char32_t c = 0; c <= kLastTested; ++c) {
    if (c < 0xD800 || c > 0xDFFF) append_utf8(c, out);
  }
  return out;
}

/// The code points of `text` that `pattern`, of one character, matches.
std::vector<char32_t> matched(const std::string& pattern, const std::string& text) {
  std::vector<char32_t> out;
  Regex(pattern).for_each_match(text, [&](size_t begin, size_t end) {
    while (begin < end) out.push_back(next_code_point(text, begin));
  });
  return out;
}

std::vector<char32_t> of_categories(const char* name, bool inside) {
  std::vector<char32_t> out;
  for (char32_t c = 0; c <= kLastTested; ++c) {
    if ((c < 0xD800 || c > 0xDFFF) && in_categories(c, *category_set(name)) == inside) out.push_back(c);
  }
  return out;
}

TEST(Regex, PropertiesFollowTheTablesForEachCodePoint) {
  const std::string text = tested_code_points();
  for (const char* name : {"L", "N", "M", "P", "S", "Lu", "Ll", "Lm", "Cn"}) {
    const std::string braces = "{" + std::string(name) + "}";
    const auto inside = of_categories(name, true), outside = of_categories(name, false);
    EXPECT_EQ(matched("\\p" + braces + "+", text), inside) << name;
    EXPECT_EQ(matched("[\\p" + braces + "]+", text), inside) << name;
    EXPECT_EQ(matched("\\P" + braces + "+", text), outside) << name;
    EXPECT_EQ(matched("[^\\p" + braces + "]+", text), outside) << name;
    EXPECT_EQ(matched("[\\P" + braces + "]+", text), outside) << name;
    EXPECT_EQ(matched("[\\p{^" + std::string(name) + "}]+", text), outside) << name;
  }
}

TEST(Regex, WhiteSpaceIsOfTheTable) {
  const std::string text = tested_code_points();
  std::vector<char32_t> inside;
  for (char32_t c = 0; c <= kLastTested; ++c) {
    if (is_white_space(c)) inside.push_back(c);
  }
  EXPECT_EQ(inside.size(), 25u);
  EXPECT_EQ(matched("\\s", text), inside);
  EXPECT_EQ(matched("[^\\S]", text), inside);
  EXPECT_FALSE(is_white_space(0x180E));
}

TEST(Regex, BothFormsOfAPropertyMeanTheSame) {
  for (const char* pattern : {R"(\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)", R"([\p{Lu}\p{M}]*\P{Ll})"}) {
    EXPECT_NE(translate_pattern(pattern, false), translate_pattern(pattern, true));
    EXPECT_EQ(translate_pattern(pattern, true).find("\\p"), std::string::npos);
    const std::string text = tested_code_points();
    EXPECT_EQ(matches(Regex(pattern, true), text), matches(Regex(pattern), text));
  }
}

TEST(Regex, ReadsWhatTokenizersWrite) {
  const Regex qwen(
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(matches(qwen, "I'LL  see 12!\n\n x"),
            (Matches{{0, 1}, {1, 4}, {4, 5}, {5, 9}, {9, 10}, {10, 11}, {11, 12}, {12, 15}, {15, 17}}));
  EXPECT_EQ(matches(Regex(R"(\v|\x41|\u0042|\x{1F98A}|a{2,3})"), "\x0B\nAB🦊aaaa"),
            (Matches{{0, 1}, {2, 3}, {3, 4}, {4, 8}, {8, 11}}));
  EXPECT_EQ(matches(Regex("x*"), "axb"), (Matches{{0, 0}, {1, 2}, {3, 3}}));
  EXPECT_TRUE(matches(qwen, "").empty());
  EXPECT_EQ(matches(Regex(R"(\.|\\|\[\*\])"), R"(a.[*]\\)"), (Matches{{1, 2}, {2, 5}, {5, 6}, {6, 7}}));
}

TEST(Regex, RefusesWhatDiffersBetweenEngines) {
  for (const char* pattern : {"\\w",        "\\b",      "\\h",
                              "\\p{Han}",   "\\pL",     "\\p{",
                              "\\p",        "\\p{}",    "[[:alpha:]]",
                              "[a&&b]",     "[[a]]",    "[]a]",
                              "[^]",        "[",        "[a",
                              "[\\",        "\\",       "(?i)a",
                              "(?m:a)",     "(?P<n>a)", "(*FAIL)",
                              "(?#c)",      "a{,3}",    "a{1}+",
                              "{",          "a{1",      "\\1",
                              "\\xE9",      "\\x",      "\\x{110000}",
                              "\\x{D800}",  "\\x{}",    "\\x{FFFFFFFFFFFFFFFF1}",
                              "\\u12",      "\\C",      "\\K",
                              "\\Q",        "(",        ")",
                              "*",          "(?<=a*)b", "(?i:\\p{L})",
                              "(?i:[a-z])", "(?i:é)",   "\\é",
                              "[\\s-a]",    "\xFF",     "(?",
                              "[b-a]"}) {
    EXPECT_THROW(Regex{pattern}, InvalidArgument) << pattern;
  }
  EXPECT_THROW(Regex(std::string(70000, 'a')), InvalidArgument);
  EXPECT_THROW(Regex(std::string(10000, '(')), InvalidArgument);
}

TEST(Regex, RefusalsSayWhatAndWhere) {
  const std::pair<const char*, const char*> cases[] = {
      {"ab)", "a parenthesis that closes nothing at byte 2"},
      {"(?i:a[b])", "a class in a case-insensitive group at byte 5"},
      {"(?i:a\\s)", "an escape in a case-insensitive group at byte 5"},
      {"(?i:(é))", "a case-insensitive non-ASCII character at byte 5"},
      {"x(?i)a", "this kind of group at byte 1"},
      {"a(*FAIL)", "'(*' at byte 1"},
      {"a{,3}", "this brace at byte 1"},
      {"a{1}+", "a possessive interval at byte 4"},
      {"ab\xFF", "invalid UTF-8 at byte 2"}};
  for (const auto& [pattern, says] : cases) {
    EXPECT_EQ(test::refusal([&] { Regex{pattern}; }),
              std::string("regular expression: ") + says + " is not supported");
  }
}

TEST(Regex, WorkIsLimited) {
  EXPECT_THROW(matches(Regex("(?:a+)+[bc]"), std::string(40, 'a')), InvalidArgument);
  EXPECT_THROW(matches(Regex("(?:(?:a|aa)+)+[bc]"), std::string(60, 'a')), InvalidArgument);
  // What would remember each of its steps may not take all memory for that.
  EXPECT_EQ(test::refusal([] { matches(Regex("^(?:(a)|b)*c"), std::string(3 << 20, 'a') + "dc"); }),
            "regular expression: heap limit exceeded at byte 0");
}

TEST(Regex, LongRunsTakeLinearTime) {
  const Regex regex(R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  for (const char* unit : {"a", " ", "!", "\xE4\xB8\xAD", "\xCC\x81", "\n"}) {
    std::string text;
    for (int i = 0; i < (1 << 20); ++i) text += unit;
    EXPECT_EQ(matches(regex, text), (Matches{{0, text.size()}})) << unit;
  }
  // Walked back step by step: what is allowed grows with the text.
  const std::string spaces(12 << 20, ' ');
  EXPECT_EQ(matches(regex, spaces), (Matches{{0, spaces.size()}}));
}

}  // namespace
}  // namespace refrain::text
