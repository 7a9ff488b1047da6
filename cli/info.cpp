// `refrain info`: what a model folder holds, without running it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/streams.h"
#include "refrain/format/model_folder.h"
#include "refrain/model/config.h"
#include "refrain/text/tokenizer.h"

namespace refrain::cli {
namespace {

template <class... Args>
void line(std::string& text, std::string_view title, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(text), "{:<16}", title);
  fmt::format_to(std::back_inserter(text), format, std::forward<Args>(args)...);
  text += '\n';
}

void run(const std::filesystem::path& path) {
  const format::ModelFolder folder = format::ModelFolder::open(
      path, [](LogLevel, std::string_view message) { say("refrain: warning: {}\n", message); });
  const model::Config c = model::read_config(path, folder.config());
  const format::ModelFolder::Totals totals = folder.totals();
  std::map<std::string_view, size_t> types;
  for (const std::string& name : folder.tensor_names()) ++types[folder.find(name)->type_name];

  std::string text;
  line(text, "architecture", "{}", c.model_type);
  line(text, "layers", "{}", c.state.size());
  for (const auto& [title, fact] : c.facts) line(text, title, "{}", fact);
  line(text, "vocabulary", "{}", c.vocab);
  line(text, "context", "{} tokens", c.context_tokens);
  for (const auto& [state, layers] : model::cache_groups(c.state)) {
    line(text, "cache", "{} bytes a token in f32, {} in f16, for {} layers{}",
         layers.size() * state.position_bytes(DType::f32), layers.size() * state.position_bytes(DType::f16),
         layers.size(), state.window != 0 ? fmt::format(" that attend to the last {}", state.window) : "");
  }
  if (const auto& q = folder.quantization().defaults) {
    line(text, "quantization", "{} {} bits, groups of {}", q->mode, q->affine.bits, q->affine.group_size);
  }
  std::string counts;
  for (const auto& [type, count] : types)
    fmt::format_to(std::back_inserter(counts), "{}{} {}", counts.empty() ? "" : ", ", count, type);
  line(text, "tensors", "{} in {} file{}: {}", totals.tensors, totals.files, totals.files == 1 ? "" : "s",
       counts);
  line(text, "bytes", "{}", totals.bytes);
  line(text, "alignment", "{} tensors usable where they lie, {} to be copied", totals.aligned_tensors,
       totals.unaligned_tensors);
  line(text, "end of text", "{}", c.eos_ids.empty() ? "none" : fmt::format("{}", fmt::join(c.eos_ids, " ")));
  std::error_code ignored;
  if (std::filesystem::exists(path / "tokenizer.json", ignored)) {
    const text::Tokenizer tokenizer = text::Tokenizer::load_folder(path);
    size_t spelled = 0;
    for (uint32_t id = 0; id < tokenizer.vocab_size(); ++id) spelled += tokenizer.has_spelling(id);
    const auto bos = tokenizer.bos();
    line(text, "tokenizer", "{} tokens, {}", spelled,
         bos ? fmt::format("a prompt begins with id {}", *bos) : "nothing in front of a prompt");
  } else {
    line(text, "tokenizer", "none");
  }
  write_stdout(text);
}

}  // namespace

void add_info(CLI::App& app) {
  auto path = std::make_shared<std::filesystem::path>();
  CLI::App* sub = app.add_subcommand("info", "Describe a model folder");
  sub->add_option("MODEL", *path, "Folder with config.json and *.safetensors")->required();
  sub->callback([path] { run(*path); });
}

}  // namespace refrain::cli
