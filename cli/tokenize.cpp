// `refrain tokenize`: lines of text on stdin to lines of ids on stdout, or with --decode the way back.
#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "cli/model_options.h"
#include "cli/streams.h"
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
  bool whole = false;
};

/// Calls `use` with each line of stdin, without its LF, and `pause` before stdin is waited for. A last line without one
/// counts; bytes stay as they are.
void for_each_input_line(const std::function<void(std::string_view)>& use,
                         const std::function<void()>& pause) {
  std::vector<char> buffer(kBufferBytes);
  std::string line;  // what has come of it
  while (true) {
    if (stdin_pauses()) pause();
    const size_t got = read_stdin(buffer);
    if (got == 0) break;
    std::string_view rest(buffer.data(), got);
    for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      use(line.append(rest.substr(0, end)));
      line.clear();
      rest.remove_prefix(end + 1);
    }
    line.append(rest);
  }
  if (!line.empty()) use(line);
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
  std::string out;  // whole lines
  const auto flush = [&out] {
    write_stdout(out);
    out.clear();
  };
  const auto answer = [&](std::string_view input, const std::string& name) {
    try {
      if (options.decode) {
        append_json_string(
            tokenizer.decode(parse_ids(input), special ? DecodeSpecial::keep : DecodeSpecial::skip), out);
      } else {
        append_ids(tokenizer.encode(input, special ? SpecialTokens::on : SpecialTokens::off), out);
      }
    } catch (const InvalidArgument& error) {
      flush();
      throw InvalidArgument(fmt::format("{}: {}", name, error.what()));
    }
    out.push_back('\n');
    if (out.size() >= kBufferBytes) flush();
  };
  if (options.whole) {
    answer(read_input("-"), "stdin");
  } else {
    size_t number = 0;
    for_each_input_line([&](std::string_view line) { answer(line, fmt::format("stdin, line {}", ++number)); },
                        flush);
  }
  flush();
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
  command->add_flag("--whole", options->whole, "Take all of stdin, line ends included, as one line");
  command->callback([options] { run(*options); });
}

}  // namespace refrain::cli
