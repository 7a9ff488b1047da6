// `refrain logits`: the logits of the last positions of a sequence of ids, as a NumPy file.
#include <fmt/format.h>

#include <bit>
#include <csignal>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/decimal.h"
#include "cli/interrupts.h"
#include "cli/model_options.h"
#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/format/atomic_file.h"
#include "refrain/model/generator.h"

namespace refrain::cli {
namespace {

struct LogitsCommand {
  ModelOptions model;
  std::filesystem::path ids;
  std::filesystem::path output;
  uint32_t last = 1;
};

/// Header of a version 1.0 .npy file of f32 [rows, columns], padded so that the data is aligned to 64.
std::string npy_header(size_t rows, size_t columns) {
  static_assert(std::endian::native == std::endian::little);
  std::string dict =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  constexpr size_t kPreamble = 10;  // magic, version, u16 length
  dict.append(align_up(kPreamble + dict.size() + 1, 64) - kPreamble - dict.size() - 1, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xFF);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

void run(const LogitsCommand& command) {
  const std::vector<uint32_t> ids = read_ids(command.ids);
  const model::Model model = load_model(command.model).model;
  model::RunnerOptions options;
  options.context_tokens =
      static_cast<uint32_t>(std::clamp<uint64_t>(ids.size(), 1, model.config().context_tokens));
  const size_t rows = std::min<size_t>(command.last, ids.size());
  options.cache = command.model.cache_type();
  options.outputs = static_cast<uint32_t>(std::min<size_t>(rows, 64));
  model::ModelRunner runner(model, options);

  const std::string header = npy_header(rows, model.config().vocab);
  model::check_generate(runner, ids, {});  // before anything is written
  // What is no file is written as it is: a signal finds nothing to clean up.
  std::optional<Interrupts> interrupts;
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(command.output, ignored);
  if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status))
    interrupts.emplace({SIGHUP, SIGINT, SIGTERM});
  format::AtomicFile file(command.output);
  uint64_t at = 0;
  const auto append = [&](std::span<const std::byte> bytes) {
    file.write(at, bytes);
    at += bytes.size();
  };
  append(std::as_bytes(std::span(header)));
  const auto write = [&](size_t, std::span<const float> logits) { append(std::as_bytes(logits)); };
  if (!model::evaluate(runner, ids, ids.size() - rows, write, &Interrupts::seen())) Interrupts::check();
  file.commit();
}

}  // namespace

void add_logits(CLI::App& app) {
  auto command = std::make_shared<LogitsCommand>();
  CLI::App* sub = app.add_subcommand("logits", "Write the logits of the last positions of a sequence of ids");
  command->model.add_to(*sub);
  sub->add_option("--ids", command->ids, "File of token ids in decimal, separated by white space; -: stdin")
      ->required();
  sub->add_option("--last", command->last, "Positions from the end")
      ->transform(decimal<uint32_t>())
      ->check(CLI::Range(1u, UINT32_MAX))
      ->capture_default_str();
  sub->add_option("-o,--output", command->output,
                  "NumPy file, device or pipe: f32 [min(last, length), vocab_size]")
      ->required();
  sub->callback([command] { run(*command); });
}

}  // namespace refrain::cli
