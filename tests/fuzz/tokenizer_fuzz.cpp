// libFuzzer target: the bytes of a tokenizer.json, a zero byte, then a text that it encodes.
// An input that starts with '#' is text alone, for a tokenizer that is whole.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/text/byte_level.h"
#include "refrain/text/tokenizer.h"

namespace {

using namespace refrain;
using namespace refrain::text;

void require(bool holds) {
  if (!holds) std::abort();
}

void use(const Tokenizer& tokenizer, std::string_view text, bool whole) {
  for (const SpecialTokens special : {SpecialTokens::off, SpecialTokens::on}) {
    const std::vector<uint32_t> ids = tokenizer.encode(text, special);
    for (const uint32_t id : ids) require(tokenizer.has_spelling(id) && id < tokenizer.vocab_size());
    const std::string decoded = tokenizer.decode(ids, DecodeSpecial::keep);
    StreamDecoder stream(tokenizer, DecodeSpecial::keep);
    std::string streamed;
    for (const uint32_t id : ids) streamed += stream.push(id);
    require(streamed + stream.finish() == decoded);
    if (whole) require(decoded == text);
  }
}

/// Every byte is a token, so that text comes back as it was.
Tokenizer whole_tokenizer() {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    append_byte_characters(std::string(1, static_cast<char>(byte)), character);
    if (character == "\"" || character == "\\") character.insert(0, "\\");
    vocab += "\"" + character + "\":" + std::to_string(byte) + ",";
  }
  return Tokenizer::parse(
      R"({"added_tokens":[{"id":259,"content":"<|end|>","special":true}],"pre_tokenizer":{"type":"ByteLevel",)"
      R"("add_prefix_space":false},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{)" +
          vocab + R"("he":256,"ll":257,"hell":258},"merges":[["h","e"],["l","l"],["he","ll"]]}})",
      {}, "whole.json");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Tokenizer whole = whole_tokenizer();
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    if (input.starts_with('#')) {
      use(whole, input.substr(1), true);
      return 0;
    }
    const size_t zero = input.find('\0');
    const std::string_view text = zero == std::string_view::npos ? "the text" : input.substr(zero + 1);
    use(Tokenizer::parse(input.substr(0, zero), {}, "fuzz.json"), text, false);
  } catch (const Error&) {
  }
  return 0;
}
