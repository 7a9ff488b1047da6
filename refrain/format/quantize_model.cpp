#include "refrain/format/quantize_model.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/core/foreign_text.h"
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

constexpr std::string_view kConfig = "config.json", kQuantizedBy = "quantized_by", kRefrain = "refrain";
constexpr std::string_view kStage = ".refrain-quantize.tmp";  // where a folder is made, in itself

bool is_copied(std::string_view name) {
  return name.starts_with("chat_template.") || std::ranges::find(kCopied, name) != kCopied.end();
}

bool is_ours(std::string_view name) {
  return name == "model.safetensors" || name == kConfig || is_copied(name);
}

/// Whether a run that was killed may have left it: the temporary folder, or the temporary name of one of our files.
bool is_leftover(std::string_view name) {
  if (name == kStage) return true;
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
    if (const auto block = find_block(config, key))
      block->fail("expected a model that is not quantized, got a quantized one");
  }
  // One of ours that has been decoded keeps saying so.
  if (config.string_or(kQuantizedBy, std::string(kRefrain)) != kRefrain)
    config.at(kQuantizedBy).fail("expected a model that is not quantized, got one of another program");
  for (const std::string& name : folder.tensor_names()) {
    const auto fail = [&](const char* what) {
      throw FileError(fmt::format("{}: tensor {}: {}", folder.path().string(), in_quotes(name), what));
    };
    if (name.ends_with(".scales")) fail("expected a model that is not quantized, got scales");
    if (name.find(".experts.") != std::string::npos)
      fail("expected a model without experts, got one of an expert");
  }
}

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw FileError(path.string() + ": " + what);
}

void check(const fs::path& path, const std::error_code& error) {
  if (error) fail(path, error.message());
}

struct Descriptor {
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  int fd = -1;
};

/// Reads from files what is mapped of them. Where one has been cut meanwhile that is an error, while a touch of the mapping
/// would end the process.
class FileReader {
 public:
  /// From here on it is this file that is read, whatever comes to have its name.
  void hold(const MappedFile& file) {
    Descriptor& held = held_[&file];
    if (held.fd < 0) held.fd = ::open(file.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (held.fd < 0) check(file.path(), std::error_code(errno, std::generic_category()));
  }
  /// A part of what a file maps; valid until the next call.
  std::span<const std::byte> read(const MappedFile& file, std::span<const std::byte> part) {
    bytes_.resize(part.size());
    const size_t begin = static_cast<size_t>(part.data() - file.bytes().data());
    for (size_t done = 0; done < part.size();) {
      const ssize_t got = ::pread(held_.at(&file).fd, bytes_.data() + done, part.size() - done,
                                  static_cast<off_t>(begin + done));
      if (got < 0 && errno != EINTR) check(file.path(), std::error_code(errno, std::generic_category()));
      if (got == 0)
        fail(file.path(), fmt::format("expected {} bytes, got {}: it has been cut while it was read",
                                      file.bytes().size(), begin + done));
      done += got > 0 ? static_cast<size_t>(got) : 0;
    }
    return bytes_;
  }

 private:
  std::map<const MappedFile*, Descriptor> held_;
  std::vector<std::byte> bytes_;
};

/// Whether a folder's config.json says that it has been written here.
bool is_our_result(const fs::path& folder) try {
  const Json config = Json::load(folder / kConfig);
  return config.has("quantization") && config.string_or(kQuantizedBy, "") == kRefrain;
} catch (const FileError&) {
  return false;
}

/// The folder `out` while it is made: files come into `stage()`, and `commit` puts them in the place of what was there.
class OutputFolder {
 public:
  /// Makes sure that `out` takes the result, and holds it against other runs.
  OutputFolder(const fs::path& in, const fs::path& out, bool force)
      : path_(end_of_links(out)), stage_(path_ / kStage) {
    std::error_code error;
    if (fs::equivalent(in, path_, error)) fail(out, "expected a folder other than the input");
    const fs::file_status status = fs::status(path_, error);
    if (fs::exists(status) && !fs::is_directory(status)) fail(out, "expected a folder, got a file");
    is_new_ = fs::create_directories(path_, error);
    if (error) fail(out, "cannot create the folder: " + error.message());
    lock_.fd = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock_.fd < 0) check(out, std::error_code(errno, std::generic_category()));
    if (::flock(lock_.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)  // else: there are no locks here
      fail(out, "expected a folder of this run alone, another one writes it");

    std::vector<std::string> left;
    for (std::string& name : names_in(path_)) (is_leftover(name) ? left : old_).push_back(std::move(name));
    // Killed while it replaced files: these are halves of our results.
    const bool unfinished = fs::exists(stage_, error) && !fs::exists(path_ / kConfig, error);
    if (!old_.empty() && !unfinished) {
      const std::string found = in_quotes(old_.front());
      if (!force)
        fail(out, "expected an empty folder, found " + found +
                      " (--force replaces what this command has written)");
      if (!is_our_result(path_))
        fail(out, "expected a folder that this command has written, found another's " + found);
    }
    for (const std::string& name : old_) {
      if (!is_ours(name)) fail(out, "expected only files that this command writes, found " + in_quotes(name));
    }
    for (const std::string& name : left) {
      fs::remove_all(path_ / name, error);
      check(path_ / name, error);
    }
    fs::create_directory(stage_, error);
    check(stage_, error);
  }
  ~OutputFolder() {
    std::error_code ignored;
    if (!commits_) fs::remove_all(stage_, ignored);
    if (!commits_ && is_new_) fs::remove(path_, ignored);
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const fs::path& stage() const { return stage_; }

  void commit() {
    commits_ = true;  // from here on a later run goes by what lies there
    std::vector<std::string> made = names_in(stage_);
    // While config.json is away this is no model, so that nothing takes a mixture of old and new for one.
    std::ranges::partition(old_, [](std::string_view name) { return name == kConfig; });
    std::ranges::partition(made, [](std::string_view name) { return name != kConfig; });
    std::error_code error;
    for (const std::string& name : old_) {
      fs::remove_all(path_ / name, error);
      check(path_ / name, error);
    }
    for (const std::string& name : made) {
      fs::rename(stage_ / name, path_ / name, error);
      check(path_ / name, error);
    }
    fs::remove(stage_, error);
    check(stage_, error);
    if (::fsync(lock_.fd) != 0 && errno != EINVAL)
      check(path_, std::error_code(errno, std::generic_category()));
  }

 private:
  fs::path path_, stage_;
  std::vector<std::string> old_;
  Descriptor lock_;
  bool is_new_ = false, commits_ = false;
};

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

class Quantizer {
 public:
  Quantizer(const ModelFolder& folder, const QuantizeOptions& options) : folder_(folder), options_(options) {
    threads_ = options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  }

  QuantizeReport write(const fs::path& path) {
    drop_head_ = has_copied_head();
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

  /// Whether there is a head that is the embedding once more. Throws FileError when it should be and is not.
  bool has_copied_head() {
    if (!folder_.config().boolean_or("tie_word_embeddings", false)) return false;
    if (!folder_.has(kHead) || !folder_.has(kEmbedding)) return false;
    const TensorSource head = folder_.tensor(kHead), embedding = folder_.tensor(kEmbedding);
    FileReader other;  // each keeps what it has read last
    reader_.hold(*head.file), other.hold(*embedding.file);
    const auto part = [](FileReader& reader, const TensorSource& whole, size_t first, size_t count) {
      const TensorSegment& segment = whole.segments[0];
      const size_t bytes = size_bytes(segment.dtype);
      return plain_tensor(whole.name, segment.dtype, Shape{static_cast<int64_t>(count)},
                          reader.read(*whole.file, segment.bytes.subspan(first * bytes, count * bytes)));
    };
    bool same = head.shape == embedding.shape;
    const size_t elements = static_cast<size_t>(head.shape.elements());
    constexpr size_t kChunk = kChunkBytes / sizeof(double);  // elements
    for (size_t done = 0; same && done < elements; done += kChunk) {
      const size_t count = std::min(kChunk, elements - done);
      same = same_values(part(reader_, head, done, count), part(other, embedding, done, count));
    }
    if (same) return true;
    throw FileError(
        fmt::format("{}: tensor {}: expected what {} holds, to which config.json ties it, got another",
                    folder_.path().string(), in_quotes(kHead), in_quotes(kEmbedding)));
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
    reader_.hold(*folder_.tensor(entry.name).file);
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
    const TensorSource tensor = folder_.tensor(entry.name);
    for (size_t done = 0; done < entry.bytes.size();) {
      const size_t size = std::min<size_t>(kChunkBytes, entry.bytes.size() - done);
      writer.append(entry.name, reader_.read(*tensor.file, entry.bytes.subspan(done, size)));
      advance(size);
      done += size;
    }
  }

  void pack(const SafetensorsEntry& entry, SafetensorsWriter& writer) {
    const TensorSource tensor = folder_.tensor(entry.name);
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
      const std::span<const std::byte> chunk =
          reader_.read(*tensor.file, entry.bytes.subspan(first * row_bytes, count * row_bytes));
      std::atomic<bool> finite{true};
      parallel_for(count, threads_, [&](size_t row) {
        std::array<float, kMaxGroupSize> values;
        const std::byte* source = chunk.data() + row * row_bytes;
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
  bool drop_head_ = false;
  unsigned threads_ = 1;
  uint64_t done_bytes_ = 0;
  uint64_t all_bytes_ = 0;
  QuantizeReport report_;
  FileReader reader_;
};

/// Where the value of member `key` of `text`, a JSON object, lies; npos: there is no such member.
size_t find_value(std::string_view text, std::string_view key) {
  constexpr const char* kSpace = " \t\r\n";
  size_t depth = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '{' || text[at] == '[') ++depth;
    if (text[at] == '}' || text[at] == ']') --depth;
    if (text[at] != '"') continue;
    const size_t start = at + 1;
    for (++at; text[at] != '"'; ++at) at += text[at] == '\\' ? 1 : 0;
    const size_t colon = text.find_first_not_of(kSpace, at + 1);
    if (depth == 1 && colon < text.size() && text[colon] == ':' && text.substr(start, at - start) == key)
      return text.find_first_not_of(kSpace, colon + 1);
  }
  return text.npos;
}

/// The text of config.json with the two blocks and who wrote them, each in place of its null or {} or else at the end;
/// everything else untouched.
std::string with_quantization(const Json& config, std::string text, AffineParameters affine) {
  // The indentation of the first member is that of the new ones.
  const size_t first_key = text.find('"');
  const size_t line = first_key == text.npos ? text.npos : text.rfind('\n', first_key);
  std::string indent = line == text.npos ? "  " : text.substr(line + 1, first_key - line - 1);
  if (indent.find_first_not_of(" \t") != indent.npos) indent = "  ";  // the object began on the same line
  const std::string block =
      fmt::format("{{\n{0}{0}\"group_size\": {1},\n{0}{0}\"bits\": {2},\n{0}{0}\"mode\": \"affine\"\n{0}}}",
                  indent, affine.group_size, affine.bits);
  std::string added;
  // In place of null or {}, where there is such a member.
  const auto add = [&](std::string_view key, const std::string& value) {
    if (const size_t old = find_value(text, key); old != text.npos) {
      const size_t end = text[old] == '{' ? text.find('}', old) + 1 : old + std::string_view("null").size();
      text.replace(old, end - old, value);
    } else {
      added +=
          fmt::format("{}\n{}\"{}\": {}", config.size() == 0 && added.empty() ? "" : ",", indent, key, value);
    }
  };
  for (const char* key : kBlocks) add(key, block);
  if (!config.has(kQuantizedBy)) add(kQuantizedBy, in_quotes(kRefrain));
  if (added.empty()) return text;
  const size_t brace = text.find_last_of('}');
  const size_t last = text.find_last_not_of(" \t\r\n", brace - 1);
  return text.substr(0, last + 1) + added + '\n' + text.substr(brace);
}

void copy_companions(const fs::path& in, const fs::path& out) {
  for (const std::string& name : names_in(in)) {
    if (!is_copied(name)) continue;
    const std::string text = read_text_file(in / name);
    const std::string_view other = name.ends_with(".json") ? saved_instead(text) : "";
    if (!other.empty()) fail(in / name, fmt::format("expected JSON, got {}", other));
    write_file(out / name, text);
  }
}

}  // namespace

QuantizeReport quantize_model(const fs::path& in, const fs::path& out, const QuantizeOptions& options) {
  mlx_affine(options.affine, DType::bf16);  // throws for parameters that MLX does not define
  const ModelFolder folder = ModelFolder::open(in, options.log);
  check_input(folder);
  OutputFolder output(in, out, options.force);
  const QuantizeReport report = Quantizer(folder, options).write(output.stage() / "model.safetensors");
  copy_companions(in, output.stage());
  write_file(output.stage() / kConfig,
             with_quantization(folder.config(), read_text_file(in / kConfig), options.affine));
  output.commit();
  return report;
}

}  // namespace refrain::format
