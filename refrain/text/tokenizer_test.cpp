// Tokenizers read from JSON written here: ids, text, the token in front, streaming, and files that are
// refused.
#include "refrain/text/tokenizer.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/text/byte_level.h"
#include "tests/refusal.h"

namespace refrain::text {
namespace {

using Ids = std::vector<uint32_t>;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out;
}

struct Source {
  std::string added =
      R"({"id":260,"content":"<|end|>","special":true},{"id":261,"content":"<tool>","special":false})";
  std::string normalizer = R"({"type":"NFC"})";
  std::string pre_tokenizer =
      R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":" ?\\p{L}+|\\s+|[^\\s\\p{L}]+"},)"
      R"("behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
  std::string post_processor = "null";
  std::string decoder = R"({"type":"ByteLevel"})";
  std::string model_type = R"("BPE")";
  std::string model_more{};
  std::string vocab_more = R"(,"he":256,"Ġt":257,"Ġthe":258,"ll":259)";
  std::string merges = R"([["h","e"],["Ġ","t"],["Ġt","he"],["l","l"]])";

  std::string json() const {
    std::string vocab;
    for (int byte = 0; byte < 256; ++byte) {
      std::string character;
      append_byte_characters(std::string(1, static_cast<char>(byte)), character);
      vocab += (byte == 0 ? "\"" : ",\"") + escaped(character) + "\":" + std::to_string(byte);
    }
    return R"({"version":"1.0","added_tokens":[)" + added + R"(],"normalizer":)" + normalizer +
           R"(,"pre_tokenizer":)" + pre_tokenizer + R"(,"post_processor":)" + post_processor +
           R"(,"decoder":)" + decoder + R"(,"model":{"type":)" + model_type + model_more + R"(,"vocab":{)" +
           vocab + vocab_more + R"(},"merges":)" + merges + "}}";
  }
  Tokenizer tokenizer(std::string_view config = {}) const {
    return Tokenizer::parse(json(), config, "t.json");
  }
};

TEST(Tokenizer, EncodesAndDecodes) {
  const Tokenizer tokenizer = Source().tokenizer();
  const std::string text = "hell the\n";
  EXPECT_EQ(tokenizer.encode(text), (Ids{256, 259, 258, '\n'}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.encode("e\u0301"), (Ids{0xC3, 0xA9}));
  EXPECT_EQ(tokenizer.vocab_size(), 262u);
  EXPECT_EQ(tokenizer.id_of("Ġthe"), 258u);
  EXPECT_EQ(tokenizer.id_of("<|end|>"), 260u);
  EXPECT_EQ(tokenizer.id_of(" the"), std::nullopt);
  EXPECT_EQ(tokenizer.bos(), std::nullopt);
}

TEST(Tokenizer, SpecialTokensInTextOnlyWhenAskedFor) {
  const Tokenizer tokenizer = Source().tokenizer();
  EXPECT_EQ(tokenizer.encode("a<|end|>", SpecialTokens::on), (Ids{'a', 260}));
  EXPECT_EQ(tokenizer.encode("a<|end|>"), (Ids{'a', '<', '|', 'e', 'n', 'd', '|', '>'}));
  EXPECT_EQ(tokenizer.encode("a<tool>"), (Ids{'a', 261}));
  EXPECT_EQ(tokenizer.decode(Ids{'a', 260, 261}), "a<tool>");
  EXPECT_EQ(tokenizer.decode(Ids{'a', 260, 261}, DecodeSpecial::keep), "a<|end|><tool>");
  EXPECT_TRUE(tokenizer.is_special(260));
  EXPECT_TRUE(tokenizer.has_spelling(260));
  EXPECT_FALSE(tokenizer.is_special(261));
  EXPECT_FALSE(tokenizer.is_special(4000000000u));
}

TEST(Tokenizer, IdsWithoutASpellingGiveNothing) {
  Source source;
  source.vocab_more += R"(,"gap":300)";
  const Tokenizer tokenizer = source.tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 301u);
  EXPECT_TRUE(tokenizer.has_spelling(300));
  for (const uint32_t id : {262u, 299u, 301u, 4294967295u}) {
    EXPECT_FALSE(tokenizer.has_spelling(id));
    EXPECT_EQ(tokenizer.decode(Ids{'a', id, 'b'}), "ab");
  }
}

TEST(Tokenizer, InvalidUtf8NamesTheOffset) {
  const Tokenizer tokenizer = Source().tokenizer();
  try {
    tokenizer.encode("abc\xE4\xB8");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "[encode] text: expected UTF-8, got an invalid sequence at byte 3");
  }
}

TEST(Tokenizer, ATextOfMoreThanAGibibyteIsRefusedUnread) {
  const Tokenizer tokenizer = Source().tokenizer();
  constexpr size_t kBytes = (size_t{1} << 30) + 1;
  void* const pages =
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(pages, MAP_FAILED);
  auto* const text = static_cast<char*>(pages);
  text[0] = '\xFF';
  const auto error_of = [&](size_t bytes) {
    try {
      tokenizer.encode({text, bytes});
      return std::string();
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(error_of(kBytes), "[encode] text: expected at most 1073741824 bytes, got 1073741825");
  EXPECT_EQ(error_of(kBytes - 1), "[encode] text: expected UTF-8, got an invalid sequence at byte 0");
  ::munmap(pages, kBytes);
}

TEST(Tokenizer, WhatAFileLeavesOutIsOff) {
  Source source;
  source.vocab_more += R"(,"gap":300)";
  const Tokenizer tokenizer = source.tokenizer();
  EXPECT_EQ(tokenizer.encode("a <tool> b"), (Ids{'a', ' ', 261, ' ', 'b'})) << "lstrip, rstrip, single_word";
  EXPECT_EQ(tokenizer.encode("a<tool>b"), (Ids{'a', 261, 'b'}));
  EXPECT_EQ(tokenizer.encode("gap"), (Ids{'g', 'a', 'p'})) << "ignore_merges";
  source.model_more = R"(,"ignore_merges":true)";
  EXPECT_EQ(source.tokenizer().encode("gap"), Ids{300});
  source.added =
      R"({"id":261,"content":"<tool>","lstrip":true},{"id":262,"content":"<one>","single_word":true})";
  EXPECT_EQ(source.tokenizer().encode("a <tool> b<one> <one>"),
            (Ids{'a', 261, ' ', 'b', '<', 'o', 'n', 'e', '>', ' ', 262}));
}

TEST(Tokenizer, StreamsWholeCharacters) {
  const Tokenizer tokenizer = Source().tokenizer();
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0xA6), "");
  EXPECT_EQ(stream.push(0x8A), "🦊");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push('x'), "\uFFFDx");
  EXPECT_EQ(stream.push(260), "");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Tokenizer, StreamsWhatDecodeGivesTextAfterText) {
  Source spaced;
  spaced.decoder = "null";  // spellings with spaces between them: the first of each text has none in front
  for (const Tokenizer& tokenizer : {Source().tokenizer(), spaced.tokenizer()}) {
    for (const DecodeSpecial mode : {DecodeSpecial::skip, DecodeSpecial::keep}) {
      StreamDecoder stream(tokenizer, mode);
      std::mt19937 random(3);
      for (int round = 0; round < 2000; ++round) {
        Ids ids;
        for (size_t n = random() % 12; n > 0; --n)
          ids.push_back(random() % 3 == 0 ? random() % 265 : 0x80 + random() % 0x78);
        std::string text;
        for (const uint32_t id : ids) text += stream.push(id);
        text += stream.finish();
        ASSERT_EQ(text, tokenizer.decode(ids, mode));
      }
    }
  }
  EXPECT_EQ(spaced.tokenizer().decode(Ids{260, 'a', 'b', 260, 'c'}), "a b c");
}

TEST(Tokenizer, ARunOfFallbackBytesIsTextOrIsNotAsAWhole) {
  Source source;
  source.decoder =
      R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"_"},"content":" "},)"
      R"({"type":"ByteFallback"},{"type":"Fuse"}]})";
  source.vocab_more = R"(,"<0xE4>":300,"<0xB8>":301,"<0xAD>":302,"x_":303)";
  source.merges = "[]";
  const Tokenizer tokenizer = source.tokenizer();
  const std::pair<Ids, std::string> cases[] = {{{303, 300, 301, 302, 303}, "x 中x "},
                                               {{303, 300, 301, 303}, "x \uFFFD\uFFFDx "},
                                               {{300, 301, 302, 301}, "\uFFFD\uFFFD\uFFFD\uFFFD"},
                                               {{300, 303, 301}, "\uFFFDx \uFFFD"},
                                               {{302}, "\uFFFD"}};
  for (const auto& [ids, text] : cases) {
    EXPECT_EQ(tokenizer.decode(ids), text);
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const uint32_t id : ids) streamed += stream.push(id);
    EXPECT_EQ(streamed + stream.finish(), text);
  }
  source.decoder = R"({"type":"Fuse"})";
  EXPECT_EQ(source.tokenizer().decode(Ids{300, 303}), "<0xE4>x_") << "spellings as they are";
}

TEST(Tokenizer, UnknownCharactersAreOneTokenWhereTheFileSaysSo) {
  Source source;
  source.pre_tokenizer = "null";  // so that characters are not bytes, and most are unknown
  source.vocab_more = R"(,"<unk>":300)";
  source.merges = "[]";
  source.model_more = R"(,"unk_token":"<unk>")";
  EXPECT_EQ(source.tokenizer().encode("a中中b"), (Ids{'a', 300, 300, 'b'}));
  source.model_more += R"(,"fuse_unk":true)";
  EXPECT_EQ(source.tokenizer().encode("a中中b"), (Ids{'a', 300, 'b'}));
}

TEST(Tokenizer, AnUnknownTokenThatIsNoneIsAnErrorWhereItIsNeeded) {
  Source source;
  source.pre_tokenizer = "null";
  source.merges = "[]";
  source.model_more = R"(,"unk_token":"<\nunk>")";
  const Tokenizer tokenizer = source.tokenizer();
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{'a', 'b'}));
  EXPECT_EQ(
      test::refusal<InvalidArgument>([&] { tokenizer.encode("a中b"); }),
      R"([encode] text: expected characters of the vocabulary, which lacks unk_token "<\x0aunk>", got U+4E2D)");
}

TEST(Tokenizer, AddedTokensAreFoundBeforeAndAfterNormalizing) {
  for (const char* normalizer : {"null", R"({"type":"NFC"})"}) {
    Source source;
    source.normalizer = normalizer;
    source.added =
        R"({"id":260,"content":"<a>","normalized":true},{"id":261,"content":"<b>","normalized":false})";
    EXPECT_EQ(source.tokenizer().encode("x<a>y<b>z"), (Ids{'x', 260, 'y', 261, 'z'})) << normalizer;
  }
}

TEST(Tokenizer, BosFromTheTemplateOrTheConfiguration) {
  Source source;
  EXPECT_EQ(source.tokenizer(R"({"add_bos_token":true,"bos_token":"<|end|>"})").bos(), 260u);
  EXPECT_EQ(source.tokenizer(R"({"add_bos_token":true,"bos_token":{"content":"<|end|>"}})").bos(), 260u);
  EXPECT_EQ(source.tokenizer(R"({"add_bos_token":false,"bos_token":"<|end|>"})").bos(), std::nullopt);
  EXPECT_EQ(source.tokenizer(R"({"bos_token":"<|end|>"})").bos(), std::nullopt);
  EXPECT_THROW(source.tokenizer(R"({"add_bos_token":true,"bos_token":null})"), FileError);
  EXPECT_THROW(source.tokenizer(R"({"add_bos_token":true,"bos_token":"<none>"})"), FileError);
  EXPECT_THROW(source.tokenizer(R"({"add_bos_token":"yes"})"), FileError);
  EXPECT_THROW(source.tokenizer("{"), FileError);
  const std::string special =
      R"("special_tokens":{"<|end|>":{"id":"<|end|>","ids":[260],"tokens":["<|end|>"]}}})";
  const std::string front =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],)" +
      special;
  source.post_processor = front;
  EXPECT_EQ(source.tokenizer().bos(), 260u);
  EXPECT_EQ(source.tokenizer(R"({"add_bos_token":true,"bos_token":"<tool>"})").bos(), 260u);
  const std::string twice =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],)" +
      special;
  for (const std::string& both :
       {twice, R"({"type":"Sequence","processors":[)" + front + "," + front + "]}"}) {
    source.post_processor = both;
    EXPECT_THROW(source.tokenizer(), FileError) << "a second token in front";
  }
  source.post_processor = R"({"type":"Sequence","processors":[{"type":"ByteLevel"},)" + front + "]}";
  EXPECT_EQ(source.tokenizer().bos(), 260u);
  source.post_processor =
      R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<|end|>","type_id":0}}],)" +
      special;
  EXPECT_EQ(source.tokenizer().bos(), std::nullopt);
}

void expect_refused(const Source& source, const std::string& message) {
  try {
    source.tokenizer();
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const FileError& error) {
    EXPECT_EQ(std::string(error.what()), "t.json: " + message);
  }
}

TEST(Tokenizer, RefusesAndNamesThePlace) {
  expect_refused({.model_type = R"("Unigram")"}, R"(model.type: "Unigram" is not supported)");
  // Long names are cut between characters.
  expect_refused({.model_type = '"' + std::string(59, 'm') + "\u00E9\u00E9\""},
                 "model.type: \"" + std::string(59, 'm') + "\u2026\" is not supported");
  expect_refused({.model_type = "7"}, "model.type: expected a string, got a number");
  expect_refused({.normalizer = R"({"type":"NFKC"})"}, R"(normalizer.type: "NFKC" is not supported)");
  expect_refused({.normalizer = R"({})"}, R"(normalizer: expected a member "type")");
  expect_refused({.normalizer = R"({"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Strip"}]})"},
                 R"(normalizer.normalizers[1].type: "Strip" is not supported)");
  expect_refused({.pre_tokenizer = R"({"type":"Metaspace"})"},
                 R"(pre_tokenizer.type: "Metaspace" is not supported)");
  expect_refused({.pre_tokenizer = R"({"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"})"},
                 "pre_tokenizer.pattern.Regex: regular expression: missing closing parenthesis");
  expect_refused({.pre_tokenizer = R"({"type":"Split","pattern":{"Glob":" "},"behavior":"Isolated"})"},
                 "pre_tokenizer.pattern: a pattern other than \"Regex\" or \"String\" is not supported");
  expect_refused(
      {.pre_tokenizer =
           R"({"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":true})"},
      "pre_tokenizer.invert: true is not supported");
  expect_refused({.normalizer = R"({"type":"Replace","pattern":{"Regex":" "},"content":"_"})"},
                 "normalizer.pattern: a pattern other than \"String\" is not supported");
  expect_refused({.normalizer = R"({"type":"Replace","pattern":{"String":""},"content":"_"})"},
                 "normalizer.pattern.String: expected at least one character");
  expect_refused({.pre_tokenizer = R"({"type":"Split","pattern":{"Regex":"a"},"behavior":"Removed"})"},
                 R"(pre_tokenizer.behavior: "Removed" is not supported)");
  expect_refused({.post_processor = R"({"type":"BertProcessing"})"},
                 R"(post_processor.type: "BertProcessing" is not supported)");
  expect_refused({.decoder = R"({"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip"}]})"},
                 R"(decoder.decoders[1].type: "Strip" is not supported)");
  expect_refused({.model_more = R"(,"byte_fallback":true)"},
                 "model.byte_fallback: expected a token for each byte, got no <0x00>");
  expect_refused({.model_more = R"(,"end_of_word_suffix":"</w>")"},
                 R"(model.end_of_word_suffix: "</w>" is not supported)");
  expect_refused({.model_more = R"(,"vocab":{})"}, R"(model: "vocab" occurs twice)");
  expect_refused({.vocab_more = R"(,"x\n\"":-1)"},
                 R"(model.vocab."x\x0a\x22": expected an id, a whole number of at least 0)");
  expect_refused({.vocab_more = R"(,"big":4294967296)"},
                 R"(model.vocab."big": expected an id below 4194304, got 4294967296)");
  expect_refused({.vocab_more = R"(,"big":1e3)"},
                 R"(model.vocab."big": expected an id, a whole number of at least 0)");
  expect_refused({.vocab_more = R"(,"a":300)"}, "model.vocab: the token of id 300 occurs twice");
  expect_refused({.vocab_more = R"(,"two":97)"}, "model.vocab: two tokens have the id 97");
  expect_refused({.merges = R"([["h"]])"}, "model.merges[0]: expected two parts, got 1");
  expect_refused({.merges = R"(["h e l"])"},
                 R"(model.merges[0]: expected two parts with a space between, got "h e l")");
  expect_refused({.merges = R"([["h","e"],["z","q"]])"},
                 "model.merges: merge 1: expected tokens, got a result that is none");
  expect_refused({.merges = R"([5])"}, "model.merges[0]: expected an array, got a number");
  expect_refused({.added = R"({"id":260})"}, R"(added_tokens[0]: expected a member "content")");
  expect_refused({.added = R"({"id":260,"content":""})"},
                 "added_tokens[0].content: expected at least one character");
  expect_refused({.added = R"({"id":97,"content":"new"})"},
                 R"(added_tokens[0].id: 97 is the id of "a" in model.vocab)");
  expect_refused({.added = R"({"id":260,"content":"he"})"},
                 "added_tokens[0].id: expected 256 as in model.vocab, got 260");
  expect_refused({.added = R"({"id":260,"content":"x y"},{"id":260,"content":"z w"})"},
                 "added_tokens[1].id: 260 occurs twice");
  expect_refused({.added = R"({"id":260,"content":"x y"},{"id":261,"content":"x y"})"},
                 R"(added_tokens[1].content: "x y" occurs twice)");
}

TEST(Tokenizer, LegacyMergesAndOldFiles) {
  Source source;
  source.merges = R"(["#version: 0.2","h e","Ġ t","Ġt he","l l"])";
  source.model_type = "null";
  EXPECT_EQ(source.tokenizer().encode("hell the"), (Ids{256, 259, 258}));
}

TEST(Tokenizer, DamagedFilesGiveTypedErrors) {
  const std::string json = Source().json();
  std::mt19937 random(11);
  const auto survives = [](std::string_view text) {
    try {
      Tokenizer::parse(text, {}, "t.json").encode("the \u0301 text<|end|>", SpecialTokens::on);
    } catch (const Error&) {
    }
  };
  for (size_t size = 0; size < json.size(); size += 7) {
    EXPECT_THROW(Tokenizer::parse(json.substr(0, size), {}, "t.json"), FileError) << size;
  }
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = json;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      damaged[random() % damaged.size()] = "\"{}[],:0-9e\\x\xFF\0n"[random() % 17];
    }
    survives(damaged);
  }
  EXPECT_THROW(Tokenizer::parse(std::string(1000000, '['), {}, "t.json"), FileError);
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"normalizer":)";
  EXPECT_THROW(Tokenizer::parse(deep, {}, "t.json"), FileError);
  for (const char* text :
       {"", "null", "[]", "{}", "7", "\xFF", "{\"model\":null}", "{\"model\":{\"merges\":[]}}"}) {
    EXPECT_THROW(Tokenizer::parse(text, {}, "t.json"), FileError) << text;
  }
}

TEST(Tokenizer, NumbersThatJsonDoesNotHoldFailOnlyWhereTheyAreRead) {
  Source source;
  const std::string config = R"({"model_max_length":1000000000000000019884624838656,"x":[NaN,-Infinity],)";
  EXPECT_EQ(source.tokenizer(config + R"("add_bos_token":true,"bos_token":"<|end|>"})").bos(), 260u);
  const auto error_of = [&](const std::string& text) -> std::string {
    try {
      source.tokenizer(text);
    } catch (const FileError& error) {
      return error.what();
    }
    return "";
  };
  const std::string bos = error_of(config + R"("add_bos_token":true,"bos_token":Infinity})");
  EXPECT_NE(bos.find("bos_token: expected a string, got a number"), std::string::npos) << bos;
  const std::string page = error_of("<html></html>");
  EXPECT_NE(page.find("expected JSON, got a web page"), std::string::npos) << page;
  source.decoder = R"({"type":"ByteLevel","unread":1e999})";
  EXPECT_EQ(source.tokenizer().encode("hell the"), (Ids{256, 259, 258}));
  source.vocab_more = R"(,"he":18446744073709551616)";
  const std::string id = error_of("");
  EXPECT_NE(id.find("t.json: model.vocab.\"he\": expected an id"), std::string::npos) << id;
}

TEST(Tokenizer, ReadsFolders) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "refrain_text_test";
  std::filesystem::create_directories(folder);
  EXPECT_THROW(Tokenizer::load_folder(folder / "missing"), FileError);
  std::ofstream(folder / "tokenizer.json") << Source().json();
  EXPECT_EQ(Tokenizer::load_folder(folder).bos(), std::nullopt);
  std::ofstream(folder / "tokenizer_config.json") << R"({"add_bos_token":true,"bos_token":"<|end|>"})";
  EXPECT_EQ(Tokenizer::load_folder(folder).bos(), 260u);
  EXPECT_EQ(Tokenizer::load(folder / "tokenizer.json").bos(), std::nullopt);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace refrain::text
