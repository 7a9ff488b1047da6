// refrain quantize IN OUT: a quantized copy of a model folder. The work is quantize_model of the library.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <filesystem>
#include <memory>
#include <string_view>

#include "cli/commands.h"
#include "cli/decimal.h"
#include "cli/interrupts.h"
#include "cli/streams.h"
#include "refrain/format/quantize_model.h"

namespace refrain::cli {
namespace {

struct Arguments {
  std::filesystem::path in;
  std::filesystem::path out;
  bool verbose = false;
  format::QuantizeOptions options;
};

constexpr double kMegabyte = 1e6;

void quantize(Arguments& arguments) {
  const bool verbose = arguments.verbose;
  const bool shows_progress = ::isatty(STDERR_FILENO) != 0;
  arguments.options.log = [verbose](LogLevel level, std::string_view message) {
    if (level == LogLevel::warning) {
      say("refrain: warning: {}\n", message);
    } else if (verbose) {
      say("{}\n", message);
    }
  };
  int shown_percent = -1;
  const Interrupts interrupts({SIGHUP, SIGINT, SIGTERM});
  arguments.options.progress = [&shown_percent, shows_progress](uint64_t done_bytes, uint64_t all_bytes) {
    Interrupts::check();
    if (!shows_progress) return;
    const int percent =
        all_bytes == 0
            ? 100
            : static_cast<int>(100.0 * static_cast<double>(done_bytes) / static_cast<double>(all_bytes));
    if (percent != shown_percent) say("\rquantizing {:3}%", percent);
    shown_percent = percent;
  };
  format::QuantizeReport report;
  try {
    report = format::quantize_model(arguments.in, arguments.out, arguments.options);
  } catch (...) {
    if (shown_percent >= 0) say("\n");
    throw;
  }
  if (shown_percent >= 0) say("\r");
  if (verbose || shows_progress) {
    say("{} tensors packed, {} kept, {} dropped; {:.1f} MB -> {:.1f} MB\n", report.packed_tensors,
        report.kept_tensors, report.dropped_tensors, static_cast<double>(report.input_bytes) / kMegabyte,
        static_cast<double>(report.output_bytes) / kMegabyte);
  }
}

}  // namespace

void add_quantize(CLI::App& root) {
  CLI::App* command = root.add_subcommand("quantize", "Write a quantized copy of a model folder");
  const auto arguments = std::make_shared<Arguments>();
  format::QuantizeOptions& options = arguments->options;
  command->add_option("IN", arguments->in, "Model folder (f32, f16 or bf16)")->required();
  command
      ->add_option("OUT", arguments->out,
                   "Folder to write: new, empty or, with --force, one that this command has written")
      ->required();
  command->add_option("--bits", options.affine.bits, "Bits of a code")
      ->transform(decimal<unsigned>())
      ->check(CLI::IsMember({2u, 3u, 4u, 5u, 6u, 8u}))
      ->capture_default_str();
  command->add_option("--group-size", options.affine.group_size, "Elements that share a scale and a bias")
      ->transform(decimal<unsigned>())
      ->check(CLI::IsMember({32u, 64u, 128u}))
      ->capture_default_str();
  command->add_option("--threads", options.threads, "Threads (0: one per CPU)")
      ->transform(decimal<unsigned>())
      ->capture_default_str();
  command->add_flag("--force", options.force, "Replace a folder that this command has written, whole");
  command->add_flag("-v,--verbose", arguments->verbose, "Say what is done");
  command->callback([arguments] { quantize(*arguments); });
}

}  // namespace refrain::cli
