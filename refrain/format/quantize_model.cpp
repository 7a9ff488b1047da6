#include "refrain/format/quantize_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/core/mapped_file.h"
#include "refrain/format/atomic_file.h"
#include "refrain/format/encoded.h"
#include "refrain/format/json.h"
#include "refrain/format/model_folder.h"
#include "refrain/format/plain.h"
#include "refrain/format/safetensors.h"

namespace refrain::format {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightSuffix = ".weight";
constexpr std::string_view kHead = "lm_head.weight", kEmbedding = "model.embed_tokens.weight";
constexpr std::array<std::string_view, 3> kParts = {kWeightSuffix, ".scales", ".biases"};
constexpr std::array<const char*, 2> kBlocks = {"quantization", "quantization_config"};  // of config.json
constexpr uint64_t kChunkBytes = uint64_t{32} << 20;  // quantized at a time, so that memory is bounded
constexpr std::array<std::string_view, 5> kCopied = {"tokenizer.json", "tokenizer_config.json",
                                                     "generation_config.json", "special_tokens_map.json",
                                                     "added_tokens.json"};

bool is_copied(std::string_view name) {
  return name.starts_with("chat_template.") || std::ranges::find(kCopied, name) != kCopied.end();
}

bool is_ours(std::string_view name) {
  return name == "model.safetensors" || name == "config.json" || is_copied(name);
}

/// Whether a run that was killed may have left it: the temporary name of one of our files.
bool is_leftover(std::string_view name) {
  constexpr std::string_view kEnd = ".tmp";
  if (!name.starts_with('.') || !name.ends_with(kEnd)) return false;
  const std::string_view inner = name.substr(1, name.size() - 1 - kEnd.size());
  return inner.rfind('.') != inner.npos && is_ours(inner.substr(0, inner.rfind('.')));
}

enum class Fate { pack, keep, drop };

/// Linear layers and embeddings are the rank-2 floating-point tensors named `*.weight`. Norms have rank 1;
/// one of rank 2 would be told by its name. What belongs to no layer is kept.
bool is_linear(const SafetensorsEntry& entry) {
  if (!entry.name.ends_with(kWeightSuffix) || entry.shape.rank() != 2) return false;
  if (entry.dtype != DType::f32 && entry.dtype != DType::f16 && entry.dtype != DType::bf16) return false;
  const std::string_view module =
      std::string_view(entry.name).substr(0, entry.name.size() - kWeightSuffix.size());
  return module.substr(module.rfind('.') + 1).find("norm") == std::string_view::npos;
}

Fate fate_of(const SafetensorsEntry& entry, bool drop_head, AffineParameters affine) {
  if (drop_head && entry.name == kHead) return Fate::drop;
  if (is_derived(entry.name)) return Fate::drop;
  const bool packs =
      is_linear(entry) && entry.shape.back() > 0 && entry.shape.back() % affine.group_size == 0;
  return packs ? Fate::pack : Fate::keep;
}

void check_input(const ModelFolder& folder) {
  const Json& config = folder.config();
  for (const char* key : kBlocks) {
    if (const auto block = config.find(key))
      block->fail("expected a model that is not quantized, got a quantized one");
  }
  for (const std::string& name : folder.tensor_names()) {
    const auto fail = [&](const char* what) {
      throw FileError(fmt::format("{}: tensor {}: {}", folder.path().string(), in_quotes(name), what));
    };
    if (name.ends_with(".scales")) fail("expected a model that is not quantized, got scales");
    if (name.find(".experts.") != std::string::npos)
      fail("expected a model without experts, got one of an expert");
  }
}

/// Makes sure that `out` is a folder which takes the result.
void prepare_output(const fs::path& in, const fs::path& out, bool force) {
  std::error_code error;
  if (fs::equivalent(in, out, error))
    throw FileError(out.string() + ": expected a folder other than the input");
  const fs::file_status status = fs::status(out, error);
  if (fs::exists(status) && !fs::is_directory(status))
    throw FileError(out.string() + ": expected a folder, got a file");
  fs::create_directories(out, error);
  if (error) throw FileError(fmt::format("{}: cannot create the folder: {}", out.string(), error.message()));
  for (const std::string& name : names_in(out)) {
    if (!force)
      throw FileError(fmt::format("{}: expected an empty folder, found {} (--force replaces)", out.string(),
                                  in_quotes(name)));
    if (is_leftover(name)) {
      fs::remove(out / name, error);
    } else if (!is_ours(name)) {
      throw FileError(fmt::format("{}: expected only files that this command writes, found {}", out.string(),
                                  in_quotes(name)));
    }
    if (error) throw FileError(fmt::format("{}: {}", (out / name).string(), error.message()));
  }
}

/// Calls `work(i)` for each i below `count` on up to `threads` threads, the calling one included.
template <class Work>
void parallel_for(size_t count, unsigned threads, const Work& work) {
  std::atomic<size_t> next{0};
  const auto loop = [&] {
    for (size_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      work(i);
    }
  };
  std::vector<std::jthread> helpers;
  try {
    while (helpers.size() + 1 < std::min<size_t>(threads, count)) helpers.emplace_back(loop);
  } catch (const std::system_error&) {
    // Fewer threads do the same.
  }
  loop();
}

/// Whether there is a head that is the embedding once more. Throws FileError when it should be and is not.
bool has_copied_head(const ModelFolder& folder) {
  if (!folder.config().boolean_or("tie_word_embeddings", false)) return false;
  if (!folder.has(kHead) || !folder.has(kEmbedding)) return false;
  if (same_bytes(folder.tensor(kHead), folder.tensor(kEmbedding))) return true;
  throw FileError(
      fmt::format("{}: tensor {}: expected what {} holds, to which config.json ties it, got another",
                  folder.path().string(), in_quotes(kHead), in_quotes(kEmbedding)));
}

class Quantizer {
 public:
  Quantizer(const ModelFolder& folder, const QuantizeOptions& options)
      : folder_(folder), options_(options), drop_head_(has_copied_head(folder)) {
    threads_ = options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  }

  QuantizeReport write(const fs::path& path) {
    std::vector<SafetensorsSpec> specs;
    for (const std::string& name : folder_.tensor_names()) announce(*folder_.find(name), specs);
    if (report_.packed_tensors == 0) {
      throw FileError(fmt::format("{}: expected a matrix whose width is a multiple of {}, found none",
                                  folder_.path().string(), options_.affine.group_size));
    }
    SafetensorsWriter writer(path, std::move(specs), {{"format", "mlx"}});
    for (const std::string& name : folder_.tensor_names()) {
      const SafetensorsEntry& entry = *folder_.find(name);
      const Fate fate = fate_of(entry, drop_head_, options_.affine);
      if (fate == Fate::pack) {
        pack(entry, writer);
      } else if (fate == Fate::keep) {
        keep(entry, writer);
      }
    }
    writer.commit();
    report_.output_bytes = writer.size_bytes();
    return report_;
  }

 private:
  static std::string part_name(const SafetensorsEntry& entry, size_t index) {
    return entry.name.substr(0, entry.name.size() - kWeightSuffix.size()) + std::string(kParts[index]);
  }

  void announce(const SafetensorsEntry& entry, std::vector<SafetensorsSpec>& specs) {
    const Fate fate = fate_of(entry, drop_head_, options_.affine);
    if (fate == Fate::drop) {
      ++report_.dropped_tensors;
      if (options_.log) {
        options_.log(LogLevel::info,
                     fmt::format("tensor {} is dropped: it follows from others", in_quotes(entry.name)));
      }
      return;
    }
    all_bytes_ += entry.bytes.size();
    report_.input_bytes += entry.bytes.size();
    if (fate == Fate::keep) {
      ++report_.kept_tensors;
      const TensorSegment segment = folder_.tensor(entry.name).segments[0];
      specs.push_back({entry.name, segment.dtype, segment.shape});
      return;
    }
    ++report_.packed_tensors;
    const WeightFormat& format = mlx_affine(options_.affine, *entry.dtype);
    for (size_t i = 0; i < kParts.size(); ++i) {
      const TensorSegment part = part_of(format, entry.shape, i);
      specs.push_back({part_name(entry, i), part.dtype, part.shape});
    }
  }

  void keep(const SafetensorsEntry& entry, SafetensorsWriter& writer) {
    writer.append(entry.name, entry.bytes);
    advance(entry.bytes.size());
  }

  void pack(const SafetensorsEntry& entry, SafetensorsWriter& writer) {
    const WeightFormat& from = plain(*entry.dtype);
    const WeightFormat& to = mlx_affine(options_.affine, *entry.dtype);
    const size_t rows = static_cast<size_t>(entry.shape[0]), columns = static_cast<size_t>(entry.shape[1]);
    const size_t row_bytes = columns * size_bytes(*entry.dtype), row_blocks = columns / to.block_elements;
    const size_t chunk_rows = std::clamp<size_t>(kChunkBytes / row_bytes, 1, std::max<size_t>(rows, 1));
    std::array<std::vector<std::byte>, kParts.size()> parts;
    for (size_t i = 0; i < parts.size(); ++i)
      parts[i].resize(chunk_rows * row_blocks * to.parts[i].block_bytes());
    for (size_t first = 0; first < rows; first += chunk_rows) {
      const size_t count = std::min(chunk_rows, rows - first);
      std::atomic<bool> finite{true};
      parallel_for(count, threads_, [&](size_t row) {
        std::array<float, kMaxGroupSize> values;
        const std::byte* source = entry.bytes.data() + (first + row) * row_bytes;
        for (size_t block = row * row_blocks; block < (row + 1) * row_blocks; ++block) {
          from.decode(from, &source, to.block_elements, values.data());
          source += to.block_elements * size_bytes(*entry.dtype);
          std::array<std::byte*, kParts.size()> at;
          for (size_t i = 0; i < at.size(); ++i) at[i] = parts[i].data() + block * to.parts[i].block_bytes();
          if (!to.encode(to, values.data(), 1, at.data())) finite.store(false, std::memory_order_relaxed);
        }
      });
      if (!finite) {
        throw FileError(fmt::format("{}: tensor {}: expected finite values, got infinity or NaN",
                                    folder_.path().string(), in_quotes(entry.name)));
      }
      for (size_t i = 0; i < parts.size(); ++i) {
        writer.append(part_name(entry, i),
                      std::span(parts[i]).first(count * row_blocks * to.parts[i].block_bytes()));
      }
      advance(count * row_bytes);
    }
  }

  void advance(uint64_t bytes) {
    done_bytes_ += bytes;
    if (options_.progress) options_.progress(done_bytes_, all_bytes_);
  }

  const ModelFolder& folder_;
  const QuantizeOptions& options_;
  bool drop_head_;
  unsigned threads_ = 1;
  uint64_t done_bytes_ = 0;
  uint64_t all_bytes_ = 0;
  QuantizeReport report_;
};

/// `text`, a JSON object, without its member `key`, which is null.
std::string without_null(std::string text, std::string_view key) {
  constexpr const char* kSpace = " \t\r\n";
  size_t depth = 0, before = 0;  // and the end of the member before
  for (size_t at = 0; at < text.size(); ++at) {
    const size_t start = at;
    if (text[at] == '{' || text[at] == '[') ++depth;
    if (text[at] == '}' || text[at] == ']') --depth;
    if (depth == 1 && (text[at] == '{' || text[at] == ',')) before = at;
    if (text[at] != '"') continue;
    for (++at; text[at] != '"'; ++at) at += text[at] == '\\' ? 1 : 0;
    const bool found = depth == 1 && std::string_view(text).substr(start + 1, at - start - 1) == key;
    const size_t colon = text.find_first_not_of(kSpace, at + 1);
    if (!found || text[colon] != ':') continue;
    const size_t end = text.find_first_not_of(kSpace, text.find("null", colon) + 4);
    // With the comma behind it, or else that before it.
    if (text[end] == ',') return text.erase(start, text.find_first_not_of(kSpace, end + 1) - start);
    if (text[before] == ',') return text.erase(before, text.find("null", colon) + 4 - before);
    return text.erase(start, text.find("null", colon) + 4 - start);
  }
  return text;
}

/// The text of config.json, where the two blocks are null if they are there, with them added at its end, everything
/// else untouched.
std::string with_quantization(const Json& config, std::string text, AffineParameters affine) {
  size_t members = config.size();
  for (const char* key : kBlocks) {
    if (std::ranges::find(config.keys(), key) == config.keys().end()) continue;
    text = without_null(std::move(text), key);
    --members;
  }
  const size_t brace = text.find_last_of('}');
  const size_t last = text.find_last_not_of(" \t\r\n", brace - 1);
  // The indentation of the first member is that of the new ones.
  const size_t first_key = text.find('"');
  const size_t line = first_key == text.npos ? text.npos : text.rfind('\n', first_key);
  std::string indent = line == text.npos ? "  " : text.substr(line + 1, first_key - line - 1);
  if (indent.find_first_not_of(" \t") != indent.npos) indent = "  ";  // the object began on the same line
  std::string added = members == 0 ? "" : ",";
  for (const char* key : kBlocks) {
    added += fmt::format(
        "\n{0}\"{1}\": {{\n{0}{0}\"group_size\": {2},\n{0}{0}\"bits\": {3},\n{0}{0}\"mode\": "
        "\"affine\"\n{0}}},",
        indent, key, affine.group_size, affine.bits);
  }
  added.back() = '\n';
  return text.substr(0, last + 1) + added + text.substr(brace);
}

void copy_companions(const fs::path& in, const fs::path& out) {
  for (const std::string& name : names_in(in)) {
    if (is_copied(name)) write_file(out / name, read_text_file(in / name));
  }
}

}  // namespace

QuantizeReport quantize_model(const fs::path& in, const fs::path& out, const QuantizeOptions& options) {
  mlx_affine(options.affine, DType::bf16);  // throws for parameters that MLX does not define
  const ModelFolder folder = ModelFolder::open(in, options.log);
  check_input(folder);
  prepare_output(in, out, options.force);
  const QuantizeReport report = Quantizer(folder, options).write(out / "model.safetensors");
  copy_companions(in, out);
  write_file(out / "config.json",
             with_quantization(folder.config(), read_text_file(in / "config.json"), options.affine));
  return report;
}

}  // namespace refrain::format
