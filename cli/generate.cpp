// `refrain generate`: continues a prompt. The continuation, and nothing else, goes to stdout as it comes.
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/decimal.h"
#include "cli/interrupts.h"
#include "cli/model_options.h"
#include "cli/streams.h"
#include "refrain/core/error.h"
#include "refrain/model/generator.h"
#include "refrain/text/tokenizer.h"

namespace refrain::cli {
namespace {

struct GenerateCommand {
  ModelOptions model;
  std::string prompt;
  std::filesystem::path file;
  std::filesystem::path ids;
  CLI::Option* ids_option = nullptr;
  std::string print = "text";
  std::string special = "off";
  bool echo = false;
  bool ignore_eos = false;
  uint32_t tokens = 256;
  model::Sampling sampling;
};

constexpr uint64_t kFirstTokens = 4096;  // that there is room for at first

/// Bit i: the tokenizer has a spelling for id i.
std::vector<uint32_t> spelled_ids(const text::Tokenizer& tokenizer, uint32_t vocab) {
  std::vector<uint32_t> mask((vocab + 31) / 32);
  for (uint32_t id = 0; id < vocab; ++id) {
    if (tokenizer.has_spelling(id)) mask[id / 32] |= 1u << (id % 32);
  }
  return mask;
}

/// Writes tokens as text or as ids.
class Printer {
 public:
  Printer(bool ids, const std::optional<text::Tokenizer>& tokenizer) : ids_(ids) {
    if (!ids && tokenizer) decoder_.emplace(*tokenizer);
  }
  void put(uint32_t id) {
    if (ids_) {
      write_stdout(fmt::format("{}{}", first_ ? "" : " ", id));
    } else {
      write_stdout(decoder_->push(id));
    }
    first_ = false;
  }
  void finish() { write_stdout(ids_ ? "\n" : decoder_->finish()); }

 private:
  bool ids_;
  bool first_ = true;
  std::optional<text::StreamDecoder> decoder_;
};

void run(const GenerateCommand& command) {
  const bool print_ids = command.print == "ids";
  const bool from_ids = command.ids_option->count() != 0;

  // What is quick to refuse comes before the weights.
  std::optional<text::Tokenizer> tokenizer;
  std::error_code ignored;
  if (!from_ids || !print_ids || std::filesystem::exists(command.model.model / "tokenizer.json", ignored)) {
    tokenizer = text::Tokenizer::load_folder(command.model.model);
  }
  std::vector<uint32_t> prompt;
  if (from_ids) {
    prompt = read_ids(command.ids);
  } else {
    prompt = tokenizer->encode(command.prompt,
                               command.special == "on" ? text::SpecialTokens::on : text::SpecialTokens::off);
    // Once: a prompt that spells it out has it already.
    const auto bos = tokenizer->bos();
    if (bos && (prompt.empty() || prompt.front() != *bos)) prompt.insert(prompt.begin(), *bos);
  }
  const auto [model, load_ms] = load_model(command.model);
  const model::Config& config = model.config();

  model::GenerateOptions options;
  options.sampling = command.sampling;
  if (tokenizer) options.sampling.mask = 0;
  if (!command.ignore_eos) options.stop_ids = config.eos_ids;
  options.max_tokens = command.tokens;

  std::optional<model::ModelRunner> runner;
  const auto make_room = [&, &model = model](uint64_t tokens) {
    runner.reset();
    model::RunnerOptions room;
    room.context_tokens = static_cast<uint32_t>(std::clamp<uint64_t>(tokens, 1, config.context_tokens));
    room.masks = tokenizer ? 1 : 0;
    room.cache = command.model.cache_type();
    runner.emplace(model, room);
    if (tokenizer) runner->set_mask(0, spelled_ids(*tokenizer, config.vocab));
  };
  make_room(prompt.size() + std::min<uint64_t>(command.tokens, kFirstTokens));
  model::check_generate(*runner, prompt, options);  // before anything goes to stdout

  Printer printer(print_ids, tokenizer);
  if (command.echo && print_ids) {
    for (const uint32_t id : prompt) printer.put(id);
  } else if (command.echo) {
    write_stdout(from_ids ? tokenizer->decode(prompt) : command.prompt);
  }
  std::vector<uint32_t> ids = prompt;
  options.on_token = [&](uint32_t id) {
    printer.put(id);
    ids.push_back(id);
    return true;
  };
  options.cancel = &Interrupts::seen();
  const model::GenerateResult result = [&] {
    const Interrupts stops_after_a_token({SIGINT});
    model::GenerateResult all = model::generate(*runner, prompt, options);
    // Room for many tokens is made as they come: few ask for so many and get them.
    while (all.reason == model::StopReason::context && runner->context_tokens() < config.context_tokens) {
      make_room(prompt.size() + std::min<uint64_t>(command.tokens, uint64_t{2} * all.generated_tokens));
      options.max_tokens = command.tokens - all.generated_tokens;
      const std::vector<uint32_t> so_far = ids;
      const model::GenerateResult more = model::generate(*runner, so_far, options);
      all.reason = more.reason;
      all.generated_tokens += more.generated_tokens;
      all.decode_s += more.prompt_s + more.decode_s;
    }
    return all;
  }();
  printer.finish();

  if (::isatty(STDOUT_FILENO) != 0 && !print_ids) say("\n");
  if (result.reason == model::StopReason::context) {
    say("refrain: note: stopped at the end of the context, {} tokens\n", runner->context_tokens());
  }
  if (command.model.shows_progress()) {
    say("load {:.1f} ms; cache {} bytes of {}; prompt {} tokens, {:.1f} tok/s; generation {} tokens, {:.1f} "
        "tok/s\n",
        load_ms, runner->cache().bytes(), name(runner->cache().dtype()), result.prompt_tokens,
        result.prompt_s > 0 ? result.prompt_tokens / result.prompt_s : 0.0, result.generated_tokens,
        result.generated_tokens > 1 ? (result.generated_tokens - 1) / result.decode_s : 0.0);
  }
  if (result.reason == model::StopReason::cancelled) Interrupts::check();
}

}  // namespace

void add_generate(CLI::App& app) {
  auto command = std::make_shared<GenerateCommand>();
  CLI::App* sub = app.add_subcommand("generate", "Continue a prompt; only the continuation goes to stdout");
  command->model.add_to(*sub);
  CLI::Option* prompt = sub->add_option("-p,--prompt", command->prompt, "Text to continue; -: stdin, whole");
  CLI::Option* file =
      sub->add_option("-f,--file", command->file, "File with the text to continue, instead of -p")
          ->excludes(prompt);
  command->ids_option =
      sub->add_option("--ids", command->ids, "File of token ids to continue, instead of -p; -: stdin")
          ->excludes(prompt)
          ->excludes(file);
  sub->add_option("--print", command->print, "text or ids")
      ->check(CLI::IsMember({"text", "ids"}))
      ->capture_default_str();
  sub->add_flag("--echo", command->echo, "Print the prompt, too");
  sub->add_option("--special", command->special,
                  "on: spellings of special tokens in the prompt become those tokens")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  sub->add_option("-n,--tokens", command->tokens, "Most tokens to generate")
      ->transform(decimal<uint32_t>())
      ->capture_default_str();
  sub->add_flag("--ignore-eos", command->ignore_eos, "Go on past end-of-text tokens");
  sub->add_option("--temp", command->sampling.temperature, "Temperature; 0: the most probable token")
      ->transform(decimal<float>())
      ->capture_default_str();
  sub->add_option("--top-k", command->sampling.top_k, "Draw from the k most probable tokens; 0: off")
      ->transform(decimal<uint32_t>())
      ->capture_default_str();
  sub->add_option("--top-p", command->sampling.top_p,
                  "Draw from the tokens that make up this probability; 1: off")
      ->transform(decimal<float>())
      ->capture_default_str();
  sub->add_option("--seed", command->sampling.seed, "Seed of the draws")
      ->transform(decimal<uint64_t>())
      ->capture_default_str();
  sub->callback([command, prompt, file] {
    if (prompt->count() + file->count() + command->ids_option->count() == 0) {
      throw InvalidArgument("generate: expected a prompt, -p TEXT, -f FILE or --ids FILE");
    }
    if (command->prompt == "-") command->file = "-";
    if (file->count() != 0 || command->file == "-") command->prompt = read_input(command->file);
    run(*command);
  });
}

}  // namespace refrain::cli
