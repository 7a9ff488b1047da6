// What every subcommand that runs a model takes: where it is, on what it runs, and what is said while it
// loads.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/model/model.h"

namespace refrain::cli {

struct ModelOptions {
  std::filesystem::path model;
  std::string device = "auto";
  uint32_t threads = 0;  ///< 0: the device decides
  bool exact = false;
  bool fast = false;
  bool portable = false;
  bool no_mmap = false;
  std::string cache;  ///< empty: the mode's
  bool verbose = false;

  /// MODEL, --device, --threads, --exact, --fast, --portable, --no-mmap, --cache, -v
  void add_to(CLI::App& command);
  /// Of the cached keys and values, for RunnerOptions.
  std::optional<DType> cache_type() const;
  /// Whether progress and figures go to stderr: on a terminal, or when asked for.
  bool shows_progress() const;
};

struct LoadedModel {
  model::Model model;
  double load_ms = 0;
};

/// Opens the device and loads the model.
LoadedModel load_model(const ModelOptions& options);

/// Decimal ids separated by white space. Throws InvalidArgument naming what is not one.
std::vector<uint32_t> parse_ids(std::string_view text);
/// Those of a file of any kind, or of stdin if `path` is "-". Throws FileError naming the file and what is not one.
std::vector<uint32_t> read_ids(const std::filesystem::path& path);

}  // namespace refrain::cli
