#include "cli/model_options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <string_view>

#include "cli/decimal.h"
#include "cli/streams.h"
#include "refrain/core/error.h"

namespace refrain::cli {

void ModelOptions::add_to(CLI::App& command) {
  command.add_option("MODEL", model, "Folder with config.json, model*.safetensors and tokenizer.json")
      ->required();
  command.add_option("--device", device, "auto, cpu or cuda:N")->capture_default_str();
  command.add_option("--threads", threads, "Workers of a CPU device (0: one a core)")
      ->transform(decimal<uint32_t>())
      ->capture_default_str();
  CLI::Option* exact_flag = command.add_flag("--exact", exact, "f32 arithmetic, unless --fast is given");
  command
      .add_flag("--fast", fast, "Kernels that round what they multiply to 16 bits, where the device has such")
      ->excludes(exact_flag);
  command.add_flag("--portable", portable, "Leave the CPU's vector extensions unused");
  command.add_flag("--no-mmap", no_mmap,
                   "Read the weights instead of mapping them, so that their files may change meanwhile");
  command
      .add_option(
          "--cache", cache,
          "How keys and values are kept: f32, or f16, which takes half the memory (default: f16 with --fast)")
      ->check(CLI::IsMember({"f32", "f16"}));
  command.add_flag("-v,--verbose", verbose, "Progress and figures on stderr, also when it is no terminal");
}

std::optional<DType> ModelOptions::cache_type() const {
  if (cache.empty()) return std::nullopt;
  return cache == "f16" ? DType::f16 : DType::f32;
}

bool ModelOptions::shows_progress() const { return verbose || ::isatty(STDERR_FILENO) != 0; }

LoadedModel load_model(const ModelOptions& options) {
  if (options.device == "null") {
    throw InvalidArgument("--device: expected auto, cpu or cuda:N, got null, which computes nothing");
  }
  const bool progress = options.shows_progress();
  const LogCallback log = [](LogLevel level, std::string_view message) {
    if (level == LogLevel::warning) say("refrain: warning: {}\n", message);
  };
  DeviceOptions device;
  device.threads = options.threads;
  device.portable_kernels = options.portable;
  device.log = log;
  model::LoadOptions load;
  load.log = log;
  if (options.fast) load.mode = graph::Mode::fast;
  if (options.no_mmap) load.files = FileAccess::read;
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  uint64_t shown_part = 0;
  if (progress) {
    // One line that changes on a terminal, a line each quarter elsewhere.
    load.progress = [&shown_part, terminal](uint64_t done, uint64_t total) {
      const uint64_t percent = total == 0 ? 100 : done * 100 / total;
      const uint64_t part = percent / (terminal ? 1 : 25);
      if (part == shown_part) return true;
      shown_part = part;
      say("{}loading {:3} %{}", terminal ? "\r" : "", percent, terminal ? "" : "\n");
      return true;
    };
  }
  const auto begin = std::chrono::steady_clock::now();
  const Device opened = Device::open(options.device, device);
  if (options.fast && opened.info().backend == "cpu")
    log(LogLevel::warning,
        fmt::format("--fast: the kernels of a CPU are exact, its cache is {}",
                    options.cache.empty() ? name(graph::types_of(load.mode).cache) : options.cache));
  model::Model model = model::Model::load(opened, options.model, load);
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
  if (terminal && shown_part != 0) say("\r\x1b[K");
  return {std::move(model), elapsed.count()};
}

std::vector<uint32_t> parse_ids(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  std::vector<uint32_t> ids;
  while (true) {
    text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    if (text.empty()) return ids;
    const std::string_view word = text.substr(0, text.find_first_of(kSpace));
    uint32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size()) {
      throw InvalidArgument(fmt::format("word {}: expected a token id in decimal, got \"{}\"", ids.size() + 1,
                                        word.substr(0, 40)));
    }
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

std::vector<uint32_t> read_ids(const std::filesystem::path& path) try {
  return parse_ids(read_input(path));
} catch (const InvalidArgument& error) {
  throw FileError(fmt::format("{}: {}", path == "-" ? "stdin" : path.string(), error.what()));
}

}  // namespace refrain::cli
