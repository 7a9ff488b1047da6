// refrain quantize IN OUT: a quantized copy of a model folder. The work is quantize_model of the library.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string_view>

#include "cli/commands.h"
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
      fmt::print(stderr, "refrain: warning: {}\n", message);
    } else if (verbose) {
      fmt::print(stderr, "{}\n", message);
    }
  };
  int shown_percent = -1;
  if (shows_progress) {
    arguments.options.progress = [&shown_percent](uint64_t done_bytes, uint64_t all_bytes) {
      const int percent =
          all_bytes == 0
              ? 100
              : static_cast<int>(100.0 * static_cast<double>(done_bytes) / static_cast<double>(all_bytes));
      if (percent != shown_percent) fmt::print(stderr, "\rquantizing {:3}%", percent);
      shown_percent = percent;
    };
  }
  format::QuantizeReport report;
  try {
    report = format::quantize_model(arguments.in, arguments.out, arguments.options);
  } catch (...) {
    if (shown_percent >= 0) fmt::print(stderr, "\n");
    throw;
  }
  if (shown_percent >= 0) fmt::print(stderr, "\r");
  if (verbose || shows_progress) {
    fmt::print(stderr, "{} tensors packed, {} kept, {} dropped; {:.1f} MB -> {:.1f} MB\n",
               report.packed_tensors, report.kept_tensors, report.dropped_tensors,
               static_cast<double>(report.input_bytes) / kMegabyte,
               static_cast<double>(report.output_bytes) / kMegabyte);
  }
}

}  // namespace

void add_quantize(CLI::App& root) {
  CLI::App* command = root.add_subcommand("quantize", "Write a quantized copy of a model folder");
  const auto arguments = std::make_shared<Arguments>();
  format::QuantizeOptions& options = arguments->options;
  command->add_option("IN", arguments->in, "Model folder (f32, f16 or bf16)")->required();
  command->add_option("OUT", arguments->out, "Folder to write: new or empty")->required();
  command->add_option("--bits", options.affine.bits, "Bits of a code")
      ->check(CLI::IsMember({2u, 3u, 4u, 5u, 6u, 8u}))
      ->capture_default_str();
  command->add_option("--group-size", options.affine.group_size, "Elements that share a scale and a bias")
      ->check(CLI::IsMember({32u, 64u, 128u}))
      ->capture_default_str();
  command->add_option("--threads", options.threads, "Threads (0: one per CPU)")->capture_default_str();
  command->add_flag("--force", options.force, "Replace a folder that this command has written");
  command->add_flag("-v,--verbose", arguments->verbose, "Say what is done");
  command->callback([arguments] { quantize(*arguments); });
}

}  // namespace refrain::cli
