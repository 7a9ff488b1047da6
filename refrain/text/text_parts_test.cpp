// The parts of the pipeline one by one: UTF-8, normalization, splitting, merging, added tokens.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/text/added_tokens.h"
#include "refrain/text/bpe.h"
#include "refrain/text/byte_level.h"
#include "refrain/text/normalizer.h"
#include "refrain/text/pre_tokenizer.h"
#include "refrain/text/unicode.h"

namespace refrain::text {
namespace {

TEST(Utf8, FindsTheFirstInvalidSequence) {
  EXPECT_EQ(first_invalid_utf8(""), std::nullopt);
  EXPECT_EQ(first_invalid_utf8("aé中🦊"), std::nullopt);
  const std::pair<std::string, size_t> bad[] = {{"\x80", 0},
                                                {"a\xC0\x80", 1},
                                                {"ab\xC1\xBF", 2},
                                                {"\xE0\x9F\xBF", 0},
                                                {"\xED\xA0\x80", 0},
                                                {"\xF0\x8F\xBF\xBF", 0},
                                                {"\xF4\x90\x80\x80", 0},
                                                {"\xF5\x80\x80\x80", 0},
                                                {"é\xC3", 2},
                                                {"a\xE4\xB8", 1},
                                                {"\xF0\x9F\xA6", 0},
                                                {"\xFF", 0},
                                                {"\xC3(", 0},
                                                {std::string(99, 'a') + "\xE4\xB8(", 99}};
  for (const auto& [text, offset] : bad) EXPECT_EQ(first_invalid_utf8(text), offset);
}

TEST(Utf8, RepairsByMaximalParts) {
  // From the Unicode standard, table 3-8 and its neighbours.
  const std::pair<std::string, std::string> cases[] = {
      {"\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64", "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd"},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA\uFFFD\uFFFDB"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "\uFFFD\uFFFD\uFFFD\uFFFDA"}};
  for (const auto& [bytes, text] : cases) {
    std::string out;
    EXPECT_EQ(append_lossy_utf8(bytes, true, out), bytes.size());
    EXPECT_EQ(out, text);
    // Byte by byte, with what is unfinished held back.
    std::string held, streamed;
    for (const char byte : bytes) {
      held.push_back(byte);
      held.erase(0, append_lossy_utf8(held, false, streamed));
      EXPECT_LE(held.size(), 3u);
    }
    append_lossy_utf8(held, true, streamed);
    EXPECT_EQ(streamed, text);
  }
}

TEST(Utf8, CodePointsThereAndBack) {
  std::string text;
  for (char32_t c = 0; c <= 0x10FFFF; c = c == 0xD7FF ? 0xE000 : c + 1) append_utf8(c, text);
  EXPECT_EQ(first_invalid_utf8(text), std::nullopt);
  size_t position = 0;
  for (char32_t c = 0; c <= 0x10FFFF; c = c == 0xD7FF ? 0xE000 : c + 1) {
    ASSERT_EQ(next_code_point(text, position), c);
    ASSERT_EQ(previous_code_point(text, position), c);
  }
  EXPECT_EQ(position, text.size());
}

TEST(ByteLevel, AllBytesThereAndBack) {
  std::string bytes, characters, back;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  append_byte_characters(bytes, characters);
  EXPECT_EQ(first_invalid_utf8(characters), std::nullopt);
  append_bytes_of(characters, back);
  EXPECT_EQ(back, bytes);
  std::string space;
  append_byte_characters(" \n!", space);
  EXPECT_EQ(space, "ĠĊ!");
  std::string plain;
  append_bytes_of("Ġ中", plain);
  EXPECT_EQ(plain, "Ġ中");
}

TEST(ByteLevel, FallbacksThereAndBack) {
  for (uint32_t byte = 0; byte < 256; ++byte)
    EXPECT_EQ(byte_of_fallback(fallback_of_byte(static_cast<uint8_t>(byte))), byte);
  EXPECT_EQ(fallback_of_byte(10), "<0x0A>");
  for (const char* none :
       {"", "<0x0>", "<0x0AB>", "<0xG0>", "<0x0G>", "<0x0A)", "(0x0A>", "<0x-1>", "<0x 1>"})
    EXPECT_EQ(byte_of_fallback(none), std::nullopt) << none;
}

TEST(Normalizer, Composes) {
  const NfcNormalizer nfc;
  EXPECT_EQ(nfc.apply(""), "");
  EXPECT_EQ(nfc.apply("e\u0301"), "\u00E9");
  EXPECT_EQ(nfc.apply("a\u0315\u0300\u05AE\u0300b"), "\u00E0\u05AE\u0300\u0315b");
  EXPECT_EQ(nfc.apply("\u1100\u1161\u11A8"), "\uAC01");
  EXPECT_EQ(nfc.apply("\u212B\u0344\uFB1D"), "\u00C5\u0308\u0301\u05D9\u05B4");
  EXPECT_EQ(nfc.apply("\u0301e"), "\u0301e");
  // The package's normalizer does not know this mark and this vowel sign.
  EXPECT_EQ(nfc.apply("e\u1ABF\u0301"), "e\u1ABF\u0301");
  EXPECT_EQ(nfc.apply("\U00011935\U00011930"), "\U00011935\U00011930");
}

TEST(Normalizer, LongRunsOfMarksAreSortedFast) {
  std::string text = "a", sorted = "a";
  for (int i = 0; i < 200000; ++i) text += "\u0316\u0334";
  for (int i = 0; i < 200000; ++i) sorted += "\u0334";
  for (int i = 0; i < 200000; ++i) sorted += "\u0316";
  EXPECT_EQ(NfcNormalizer().apply(text), sorted);
}

TEST(PreTokenizer, SplitKeepsMatchesAndGaps) {
  Pieces pieces("ab12c");
  SplitPreTokenizer(Regex("\\p{N}+")).apply(pieces);
  EXPECT_EQ(pieces.views(), (std::vector<std::string_view>{"ab", "12", "c"}));
  SplitPreTokenizer(Regex("b|2")).apply(pieces);
  EXPECT_EQ(pieces.views(), (std::vector<std::string_view>{"a", "b", "1", "2", "c"}));
  Pieces empty("");
  SplitPreTokenizer(Regex("x*")).apply(empty);
  EXPECT_TRUE(empty.views().empty());
}

TEST(PreTokenizer, SplitMergesMatchesWithWhatIsBeforeThem) {
  Pieces pieces(" a  b c");
  SplitPreTokenizer(Regex(" "), SplitPreTokenizer::Behavior::merged_with_previous).apply(pieces);
  EXPECT_EQ(pieces.views(), (std::vector<std::string_view>{" ", "a ", " ", "b ", "c"}));
}

TEST(PreTokenizer, ByteLevelPrefixesEachPiece) {
  Pieces pieces("a b");
  ByteLevelPreTokenizer(true, true).apply(pieces);
  EXPECT_EQ(pieces.views(), (std::vector<std::string_view>{"Ġa", "Ġb"}));
  Pieces cut("ab c");
  SplitPreTokenizer(Regex("b")).apply(cut);
  ByteLevelPreTokenizer(true, false).apply(cut);
  EXPECT_EQ(cut.views(), (std::vector<std::string_view>{"Ġa", "Ġb", "Ġc"}));
}

/// All possible tokens of a small alphabet up to a length, so that any pair may merge.
std::vector<std::string> small_vocabulary() {
  std::vector<std::string> out{"a", "b", "c"};
  for (size_t i = 0; out[i].size() < 6; ++i) {
    for (const char c : {'a', 'b', 'c'}) out.push_back(out[i] + c);
  }
  return out;
}

TEST(Bpe, SameAsJoiningTheBestPairUntilNoneIsLeft) {
  const std::vector<std::string> words = small_vocabulary();
  std::vector<std::pair<std::string_view, uint32_t>> tokens;
  for (uint32_t id = 0; id < words.size(); ++id) tokens.emplace_back(words[id], id);
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    std::vector<Bpe::Merge> merges;
    for (int i = 0; i < 60; ++i) {
      const std::string& left = words[random() % 39];
      const std::string& right = words[random() % 39];
      merges.emplace_back(left, right);
    }
    const Bpe bpe(Vocabulary(tokens), merges, {});
    for (int i = 0; i < 50; ++i) {
      std::string text;
      for (size_t n = random() % 40; n > 0; --n) text.push_back("abc"[random() % 3]);
      std::vector<std::string> parts;
      for (const char c : text) parts.emplace_back(1, c);
      while (true) {
        size_t best_rank = merges.size(), best_at = 0;
        for (size_t at = 0; at + 1 < parts.size(); ++at) {
          for (size_t rank = merges.size(); rank-- > 0;) {  // of a merge that occurs twice the last counts
            if (merges[rank].first != parts[at] || merges[rank].second != parts[at + 1]) continue;
            if (rank < best_rank) best_rank = rank, best_at = at;
            break;
          }
        }
        if (best_rank == merges.size()) break;
        parts[best_at] += parts[best_at + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
      }
      std::vector<uint32_t> expected, got;
      for (const std::string& part : parts) expected.push_back(*bpe.vocabulary().id_of(part));
      const std::string_view piece = text;
      bpe.tokenize({&piece, 1}, got);
      ASSERT_EQ(got, expected) << text;
    }
  }
}

TEST(Bpe, AMergeThatOccursTwiceHasItsLastRank) {
  const std::vector<std::pair<std::string_view, uint32_t>> tokens{
      {"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}};
  const auto ids = [&](const std::vector<Bpe::Merge>& merges) {
    std::vector<uint32_t> out;
    const std::string_view piece = "abc";
    Bpe(Vocabulary(tokens), merges, {}).tokenize({&piece, 1}, out);
    return out;
  };
  EXPECT_EQ(ids({{"a", "b"}, {"b", "c"}}), (std::vector<uint32_t>{3, 2}));
  EXPECT_EQ(ids({{"a", "b"}, {"b", "c"}, {"a", "b"}}), (std::vector<uint32_t>{0, 4}));
}

TEST(Bpe, AMergeWhoseRightPartIsGoneIsPassedOver) {
  const std::vector<std::pair<std::string_view, uint32_t>> tokens{{"a", 0},  {"b", 1},  {"c", 2},
                                                                  {"ab", 3}, {"bc", 4}, {"abc", 5}};
  // "b c", then "a bc" to the end of the piece; "a b", seen at first, finds nothing behind it.
  const std::vector<Bpe::Merge> merges{{"b", "c"}, {"a", "bc"}, {"a", "b"}};
  std::vector<uint32_t> ids;
  const std::string_view piece = "abc";
  Bpe(Vocabulary(tokens), merges, {}).tokenize({&piece, 1}, ids);
  EXPECT_EQ(ids, (std::vector<uint32_t>{5}));
}

TEST(Bpe, UnknownCharactersAndWholePieces) {
  const std::vector<std::pair<std::string_view, uint32_t>> tokens{
      {"a", 0}, {"b", 1}, {"ab", 2}, {"?", 9}, {"bab", 4}};
  const std::vector<Bpe::Merge> merges{{"a", "b"}};
  const auto ids = [&](std::string_view text, const BpeOptions& options) {
    std::vector<uint32_t> out;
    Bpe(Vocabulary(tokens), merges, options).tokenize({&text, 1}, out);
    return out;
  };
  using Ids = std::vector<uint32_t>;
  EXPECT_EQ(ids("azb", {}), (Ids{2}));
  EXPECT_EQ(ids("zz", {}), (Ids{}));
  EXPECT_EQ(ids("azzb", {.unknown = 9}), (Ids{0, 9, 9, 1}));
  EXPECT_EQ(ids("azzb", {.unknown = 9, .fuse_unknown = true}), (Ids{0, 9, 1}));
  EXPECT_EQ(ids("azzbz", {.unknown = 9, .fuse_unknown = true}), (Ids{0, 9, 1, 9}));
  EXPECT_EQ(ids("bab", {}), (Ids{1, 2}));
  EXPECT_EQ(ids("bab", {.ignore_merges = true}), (Ids{4}));
}

TEST(Bpe, CharactersOnBothSidesOfTheDirectTable) {
  const std::vector<std::pair<std::string_view, uint32_t>> tokens{{"\u03FF", 7}, {"\u0400", 8}};
  std::vector<uint32_t> ids;
  const std::string_view piece = "\u0400\u03FF\u0400\u0401";
  Bpe(Vocabulary(tokens), {}, {}).tokenize({&piece, 1}, ids);
  EXPECT_EQ(ids, (std::vector<uint32_t>{8, 7, 8}));
}

TEST(Bpe, RefusesMergesOfWhatIsNoToken) {
  const std::vector<std::pair<std::string_view, uint32_t>> tokens{{"a", 0}, {"b", 1}};
  const std::vector<Bpe::Merge> bad[] = {{{"a", "b"}}, {{"a", "x"}}, {{"x", "a"}}};
  for (const auto& merges : bad) EXPECT_THROW(Bpe(Vocabulary(tokens), merges, {}), InvalidArgument);
  EXPECT_THROW(Bpe(Vocabulary(tokens), {}, {.unknown = 2}), InvalidArgument);
}

TEST(AddedTokens, OfWhiteSpaceThatTakeWhatFollows) {
  // As the package `tokenizers` has it: matches do not overlap, what they take does.
  const auto split = [](AddedToken token, std::string_view text) {
    token.content = "\r\r";
    std::string out;
    AddedTokens({token}, nullptr)
        .split(text, false, true,
               [&](std::string_view part, std::optional<uint32_t> id) { out += id ? "<>" : part; });
    return out;
  };
  EXPECT_EQ(split({.rstrip = true}, "\r\r\r"), "<>");
  EXPECT_EQ(split({.rstrip = true}, "a\r\r\r\r\r\n a"), "a<><>a");
  EXPECT_EQ(split({.lstrip = true}, "a\r\r\r\r\r\n a"), "a<><>\r\n a");
  EXPECT_EQ(split({.lstrip = true, .rstrip = true}, "a \r\r\r\r\r\n a"), "a<>a");
}

TEST(AddedTokens, OfOneNormalFormTheLastCounts) {
  const ReplaceNormalizer lower("A", "a");
  for (const bool turned : {false, true}) {
    std::vector<AddedToken> tokens{{.id = turned ? 9u : 1u, .content = "Ab", .normalized = true},
                                   {.id = turned ? 1u : 9u, .content = "ab", .normalized = true}};
    std::vector<std::optional<uint32_t>> ids;
    AddedTokens(tokens, &lower).split("ab", true, true, [&](std::string_view, std::optional<uint32_t> id) {
      ids.push_back(id);
    });
    EXPECT_EQ(ids, std::vector<std::optional<uint32_t>>{tokens[1].id});
  }
}

TEST(AddedTokens, LeftmostThenLongest) {
  std::vector<AddedToken> tokens(4);
  tokens[0] = {.id = 0, .content = "ab"};
  tokens[1] = {.id = 1, .content = "abc", .special = true};
  tokens[2] = {.id = 2, .content = "cd"};
  tokens[3] = {.id = 3, .content = "é", .single_word = true};
  const AddedTokens added(tokens, nullptr);
  const auto split = [&](std::string_view text, bool parse_special) {
    std::string out;
    added.split(text, false, parse_special, [&](std::string_view part, std::optional<uint32_t> id) {
      out += id ? "<" + std::to_string(*id) + ">" : "[" + std::string(part) + "]";
    });
    return out;
  };
  EXPECT_EQ(split("xabcdab", true), "[x]<1>[d]<0>");
  EXPECT_EQ(split("xabcdab", false), "[xabcd]<0>");  // the special token is text, and hides the "cd" inside
  EXPECT_EQ(split("é éa é", true), "<3>[ éa ]<3>");
  EXPECT_EQ(split("", true), "");
}

}  // namespace
}  // namespace refrain::text
