// `refrain tokenize`: lines of text on stdin to lines of ids on stdout, or with --decode the way back.
#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "refrain/core/error.h"
#include "refrain/text/tokenizer.h"

namespace refrain::cli {
namespace {

using text::DecodeSpecial;
using text::SpecialTokens;
using text::Tokenizer;

constexpr size_t kBufferBytes = size_t{1} << 16;

struct TokenizeOptions {
  std::string model;
  std::string special = "off";
  bool decode = false;
};

/// Calls `use` with each line of stdin, without its LF. A last line without one counts; bytes stay as they
/// are.
void for_each_input_line(const std::function<void(std::string_view)>& use) {
  std::vector<char> buffer(kBufferBytes);
  std::string line;  // what has come of it
  while (const size_t got = std::fread(buffer.data(), 1, buffer.size(), stdin)) {
    std::string_view rest(buffer.data(), got);
    for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      use(line.append(rest.substr(0, end)));
      line.clear();
      rest.remove_prefix(end + 1);
    }
    line.append(rest);
  }
  if (std::ferror(stdin) != 0) throw Error("stdin: cannot read");
  if (!line.empty()) use(line);
}

std::vector<uint32_t> parse_ids(std::string_view line) {
  static constexpr std::string_view kSpaces = " \t\r";
  std::vector<uint32_t> ids;
  for (size_t at = line.find_first_not_of(kSpaces); at != std::string_view::npos;) {
    const std::string_view word = line.substr(at, line.find_first_of(kSpaces, at) - at);
    uint32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size()) {
      throw InvalidArgument(fmt::format("expected ids, decimal numbers below 2^32, at byte {}", at));
    }
    ids.push_back(id);
    at = line.find_first_not_of(kSpaces, at + word.size());
  }
  return ids;
}

void append_json_string(std::string_view text, std::string& out) {
  out.push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

void append_ids(const std::vector<uint32_t>& ids, std::string& out) {
  bool first = true;
  for (const uint32_t id : ids) {
    if (!first) out.push_back(' ');
    first = false;
    const fmt::format_int digits(id);
    out.append(digits.data(), digits.size());
  }
}

void run(const TokenizeOptions& options) {
  const std::filesystem::path model = options.model;
  const Tokenizer tokenizer =
      std::filesystem::is_regular_file(model) ? Tokenizer::load(model) : Tokenizer::load_folder(model);
  const bool special = options.special == "on";
  std::string out;
  size_t number = 0;
  for_each_input_line([&](std::string_view line) {
    ++number;
    out.clear();
    try {
      if (options.decode) {
        const std::string text =
            tokenizer.decode(parse_ids(line), special ? DecodeSpecial::keep : DecodeSpecial::skip);
        append_json_string(text, out);
      } else {
        append_ids(tokenizer.encode(line, special ? SpecialTokens::on : SpecialTokens::off), out);
      }
    } catch (const InvalidArgument& error) {
      throw InvalidArgument(fmt::format("stdin, line {}: {}", number, error.what()));
    }
    out.push_back('\n');
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size()) throw Error("stdout: cannot write");
  });
  if (std::fflush(stdout) != 0) throw Error("stdout: cannot write");
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* const command = app.add_subcommand("tokenize", "Write the token ids of each line of stdin");
  const auto options = std::make_shared<TokenizeOptions>();
  command->add_option("MODEL", options->model, "Model folder, or a tokenizer.json")->required();
  command
      ->add_option(
          "--special", options->special,
          "Whether spellings of special tokens are special tokens; with --decode, whether they are written")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  command->add_flag("--decode", options->decode,
                    "Read lines of ids and write each line's text as a JSON string");
  command->callback([options] { run(*options); });
}

}  // namespace refrain::cli
