// A tool of the Python tests: runs strings of any bytes, line feeds included, through a Tokenizer.
// Usage: tokenizer_probe TOKENIZER_JSON encode|decode on|off. Records on stdin and stdout are a 32-bit length
// and that many bytes. `encode` answers a text with its ids; `decode` answers ids with their text, special
// tokens kept if on.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/text/tokenizer.h"

namespace {

using refrain::text::DecodeSpecial;
using refrain::text::SpecialTokens;
using refrain::text::StreamDecoder;
using refrain::text::Tokenizer;

bool read_record(std::string& record) {
  uint32_t size = 0;
  if (std::fread(&size, sizeof size, 1, stdin) != 1) return false;
  record.resize(size);
  return std::fread(record.data(), 1, size, stdin) == size;
}

void write_record(const void* data, size_t size_bytes) {
  const uint32_t size = static_cast<uint32_t>(size_bytes);
  std::fwrite(&size, sizeof size, 1, stdout);
  std::fwrite(data, 1, size_bytes, stdout);
}

bool answer(const Tokenizer& tokenizer, const std::string& record, bool decode, bool special) {
  if (!decode) {
    const std::vector<uint32_t> ids =
        tokenizer.encode(record, special ? SpecialTokens::on : SpecialTokens::off);
    write_record(ids.data(), ids.size() * sizeof(uint32_t));
    return true;
  }
  std::vector<uint32_t> ids(record.size() / sizeof(uint32_t));
  if (!ids.empty()) std::memcpy(ids.data(), record.data(), ids.size() * sizeof(uint32_t));
  const DecodeSpecial mode = special ? DecodeSpecial::keep : DecodeSpecial::skip;
  const std::string text = tokenizer.decode(ids, mode);
  write_record(text.data(), text.size());
  StreamDecoder stream(tokenizer, mode);
  std::string streamed;
  for (const uint32_t id : ids) streamed += stream.push(id);
  streamed += stream.finish();
  return streamed == text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    const Tokenizer tokenizer = Tokenizer::load(argv[1]);
    std::string record;
    while (read_record(record)) {
      if (!answer(tokenizer, record, argv[2] == std::string_view("decode"),
                  argv[3] == std::string_view("on"))) {
        std::fprintf(stderr, "the stream decoder gives another text\n");
        return 1;
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
