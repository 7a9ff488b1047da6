#include "refrain/format/model_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <system_error>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/format/plain.h"

namespace refrain::format {
namespace {

// An index holds about a hundred bytes a tensor.
constexpr size_t kIndexLimitBytes = size_t{32} << 20;

namespace fs = std::filesystem;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr const char* kSupported = "affine codes of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128";

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name.find("..") == name.npos && name.find('/') == name.npos &&
         name.find('\\') == name.npos && name.find('\0') == name.npos;
}

bool is_float(std::optional<DType> dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

QuantizationParameters parse_parameters(const Json& block, const AffineParameters& fallback) {
  QuantizationParameters result;
  result.affine.bits = block.u32_or("bits", fallback.bits, 1, 32);
  result.affine.group_size = block.u32_or("group_size", fallback.group_size, 1, 1u << 20);
  result.mode = block.string_or("mode", "affine");
  constexpr std::array<std::string_view, 4> kModes = {"affine", "mxfp4", "mxfp8", "nvfp4"};
  if (std::ranges::find(kModes, result.mode) == kModes.end()) {
    block.at("mode").fail("expected affine, mxfp4, mxfp8 or nvfp4, got " + in_quotes(result.mode));
  }
  return result;
}

/// The map of the index of a folder; empty: there is no index.
std::map<std::string, std::string, std::less<>> read_index(const fs::path& folder) {
  std::map<std::string, std::string, std::less<>> index;
  std::error_code error;
  if (!fs::exists(folder / kIndexName, error)) return index;
  const Json map = Json::load(folder / kIndexName, kIndexLimitBytes).object("weight_map");
  for (const std::string& tensor : map.keys()) {
    const Json value = map.at(tensor);
    const std::string& file = value.as_string();
    if (!is_plain_name(file)) value.fail("expected the name of a file in the folder, got " + in_quotes(file));
    index.emplace(tensor, file);
  }
  return index;
}

}  // namespace

std::optional<QuantizationParameters> QuantizationConfig::of_module(std::string_view module,
                                                                    bool has_scales) const {
  if (const auto found = overrides.find(module); found != overrides.end()) {
    if (!found->second.quantized) return std::nullopt;
    return found->second.parameters ? found->second.parameters : defaults;
  }
  return has_scales ? defaults : std::nullopt;
}

QuantizationConfig parse_quantization(const Json& config) {
  QuantizationConfig result;
  std::optional<Json> block = find_block(config, "quantization");
  if (!block) block = find_block(config, "quantization_config");
  if (!block) {
    if (const auto text = config.find("text_config")) {
      block = find_block(*text, "quantization");
      if (!block) block = find_block(*text, "quantization_config");
    }
  }
  if (!block) return result;
  if (const auto method = block->find("quant_method")) {
    method->fail(fmt::format("expected MLX quantization with {}, got {}", kSupported, method->describe()));
  }
  result.defaults = parse_parameters(*block, {});
  if (const auto activations = block->find("quantize_activations"); activations && activations->as_bool()) {
    activations->fail("expected unquantized activations, got true");
  }
  for (const std::string& key : block->keys()) {
    const Json value = block->at(key);
    if (value.is_object()) {
      result.overrides[key] = {true, parse_parameters(value, result.defaults->affine)};
    } else if (value.is_bool() && key != "quantize_activations") {
      result.overrides[key] = {value.as_bool(), std::nullopt};
    }
  }
  return result;
}

bool is_derived(std::string_view tensor) {
  return tensor.find("rotary_emb") != tensor.npos &&
         (tensor.ends_with("inv_freq") || tensor.ends_with("cos_cached") || tensor.ends_with("sin_cached"));
}

ModelFolder ModelFolder::open(const fs::path& path, LogCallback log, FileAccess access) {
  std::error_code error;
  if (!fs::is_directory(path, error))
    throw FileError(path.string() + ": expected a model folder, found none");
  ModelFolder folder(path, Json::load(path / "config.json"), std::move(log));
  folder.config_.expect(Json::Kind::object);
  if (const auto code = folder.config_.find("model_file")) {
    code->fail("expected a built-in architecture, got code of the model's own: " + code->describe());
  }
  folder.quantization_ = parse_quantization(folder.config_);

  folder.index_ = read_index(path);
  std::set<std::string> listed, others;
  for (const auto& [tensor, file] : folder.index_) {
    if (fs::exists(path / file, error)) listed.insert(file);
  }
  for (const std::string& name : names_in(path)) {
    if (name.starts_with("model") && name.ends_with(".safetensors") && !listed.contains(name))
      others.insert(name);
  }
  folder.files_.reserve(listed.size() + others.size());  // entries must not move: tensors_ points to them
  for (const std::string& name : listed) folder.add(SafetensorsFile::open(path / name, access), 0);
  const auto is_absent = [&](const auto& entry) { return !folder.has(entry.first); };
  const bool stale = listed.empty() || std::ranges::any_of(folder.index_, is_absent);
  for (const std::string& name : others) {
    // "model-00002-of-00003.safetensors" belongs to what is listed if one of three files is.
    const size_t count = name.rfind("-of-");
    const auto is_sibling = [&](const std::string& other) { return other.ends_with(name.substr(count)); };
    if (stale || (count != name.npos && std::ranges::any_of(listed, is_sibling))) {
      folder.add(SafetensorsFile::open(path / name, access), listed.size());
    } else if (count == name.npos) {
      folder.add_stray(path / name, access);
    }
  }
  const auto absent = std::ranges::find_if(folder.index_, is_absent);
  if (absent != folder.index_.end() && folder.log_ && !folder.files_.empty()) {
    folder.log_(LogLevel::warning,
                fmt::format("{}: weight_map: expected tensor {} in {}, got none",
                            (path / kIndexName).string(), in_quotes(absent->first), absent->second));
  }
  if (!folder.files_.empty()) return folder;
  if (folder.index_.empty()) throw FileError(path.string() + ": expected model*.safetensors, found none");
  throw FileError((path / folder.index_.begin()->second).string() +
                  ": expected it as the index says, found none");
}

/// Takes the tensors of a file, but those that files before `first_file` have too.
void ModelFolder::add(SafetensorsFile file, size_t first_file) {
  files_.push_back(std::move(file));
  for (const SafetensorsEntry& entry : files_.back().tensors()) {
    const Location here{static_cast<uint32_t>(files_.size() - 1), &entry};
    const auto [other, is_new] = tensors_.emplace(entry.name, here);
    if (!is_new && other->second.file >= first_file)
      fail(entry.name, "expected it in one file, got it also in " + files_.back().path());
  }
}

/// Takes a file beside a complete index, unless it is of another model or another version of this one.
void ModelFolder::add_stray(const fs::path& path, FileAccess access) try {
  SafetensorsFile file = SafetensorsFile::open(path, access);
  for (const SafetensorsEntry& entry : file.tensors()) {
    if (!has(entry.name)) continue;
    throw FileError(fmt::format("{}: tensor {}: expected none that is also in {}", path.string(),
                                in_quotes(entry.name), file_of(locate(entry.name))));
  }
  add(std::move(file), files_.size());
} catch (const FileError& error) {
  if (log_)
    log_(LogLevel::warning,
         fmt::format("{}; the file, which the index does not name, is not read", error.what()));
}

std::vector<std::string> ModelFolder::tensor_names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, location] : tensors_) names.emplace_back(name);
  return names;
}

const SafetensorsEntry* ModelFolder::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second.entry;
}

ModelFolder::Totals ModelFolder::totals() const {
  Totals totals;
  totals.files = files_.size();
  totals.tensors = tensors_.size();
  for (const auto& [name, location] : tensors_) {
    const std::span<const std::byte> bytes = location.entry->bytes;
    totals.bytes += bytes.size();
    const bool aligned = reinterpret_cast<uintptr_t>(bytes.data()) % kInPlaceAlignmentBytes == 0;
    ++(aligned ? totals.aligned_tensors : totals.unaligned_tensors);
  }
  return totals;
}

const ModelFolder::Location& ModelFolder::locate(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  const auto said = index_.find(name);
  const bool indexed = said != index_.end();
  throw FileError(fmt::format("{}: tensor {}: expected it{}, got none",
                              (indexed ? path_ / said->second : path_).string(), in_quotes(name),
                              indexed ? " as the index says" : ""));
}

void ModelFolder::fail(std::string_view tensor, const std::string& what) const {
  throw FileError(fmt::format("{}: tensor {}: {}", file_of(locate(tensor)), in_quotes(tensor), what));
}

TensorSource ModelFolder::tensor(std::string_view name) const {
  const Location& location = locate(name);
  const SafetensorsFile& file = files_[location.file];
  TensorSource source;
  source.name = name;
  source.segments.push_back(file.segment(*location.entry));
  source.format = &plain(source.segments[0].dtype);
  source.shape = source.segments[0].shape;
  source.file = file.file();
  return source;
}

TensorSource ModelFolder::tensor(std::string_view name, const Shape& expected) const {
  const SafetensorsEntry& entry = *locate(name).entry;
  if (!is_float(entry.dtype)) fail(name, fmt::format("expected F32, F16 or BF16, got {}", entry.type_name));
  if (entry.shape != expected) {
    fail(name, fmt::format("expected {}, got {}", to_string(expected), to_string(entry.shape)));
  }
  return tensor(name);
}

TensorSource ModelFolder::weight(std::string_view module, int64_t rows, int64_t columns) const {
  const std::string name = std::string(module) + ".weight";
  const Shape shape = {rows, columns};
  return has(std::string(module) + ".scales") ? affine_weight(name, module, shape)
                                              : plain_weight(name, module, shape);
}

TensorSource ModelFolder::plain_weight(const std::string& name, std::string_view module,
                                       const Shape& shape) const {
  if (locate(name).entry->dtype == DType::u32) {
    const std::string scales_name = std::string(module) + ".scales";
    if (index_.contains(scales_name)) locate(scales_name);  // which says where it should be
    fail(name, fmt::format("expected codes in U32 to come with {}, got none", in_quotes(scales_name)));
  }
  TensorSource source = tensor(name, shape);
  warn_if_config_disagrees(name, module, std::nullopt);
  return source;
}

TensorSource ModelFolder::affine_weight(const std::string& name, std::string_view module,
                                        const Shape& shape) const {
  const std::string scales_name = std::string(module) + ".scales";
  const std::string biases_name = std::string(module) + ".biases";
  const SafetensorsEntry& codes = *locate(name).entry;
  const SafetensorsEntry& scales = *locate(scales_name).entry;
  if (!has(biases_name)) {
    if (index_.contains(biases_name)) locate(biases_name);
    fail(name, fmt::format("expected {} with {}, got scales in {} without biases", kSupported,
                           in_quotes(biases_name), scales.type_name));
  }
  const SafetensorsEntry& biases = *locate(biases_name).entry;
  const int64_t rows = shape[0], columns = shape[1];
  const auto expect_matrix = [&](const SafetensorsEntry& entry) {
    if (entry.shape.rank() != 2 || entry.shape[0] != rows) {
      fail(entry.name, fmt::format("expected [{}, ...], got {}", rows, to_string(entry.shape)));
    }
  };
  expect_matrix(codes);
  expect_matrix(scales);
  if (codes.dtype != DType::u32) fail(name, fmt::format("expected codes in U32, got {}", codes.type_name));
  if (!is_float(scales.dtype))
    fail(scales_name, fmt::format("expected F32, F16 or BF16, got {}", scales.type_name));

  const int64_t words = codes.shape[1], groups = scales.shape[1];
  const std::optional<int64_t> code_bits = checked_mul<int64_t>(words, 32);
  if (columns <= 0 || !code_bits || *code_bits % columns != 0 || *code_bits / columns < 1 ||
      *code_bits / columns > 8) {
    fail(name, fmt::format("expected [{}, {} * bits / 32], got {}", rows, columns, to_string(codes.shape)));
  }
  if (groups == 0 || columns % groups != 0) {
    fail(scales_name,
         fmt::format("expected [{}, {} / group size], got {}", rows, columns, to_string(scales.shape)));
  }
  const int64_t group_size = columns / groups;
  if (!std::in_range<uint32_t>(group_size)) {
    fail(scales_name, fmt::format("expected {}, got groups of {}", kSupported, group_size));
  }
  if (biases.dtype != scales.dtype || biases.shape != scales.shape) {
    fail(biases_name, fmt::format("expected {} {} as the scales, got {} {}", scales.type_name,
                                  to_string(scales.shape), biases.type_name, to_string(biases.shape)));
  }
  const AffineParameters found = {static_cast<uint32_t>(*code_bits / columns),
                                  static_cast<uint32_t>(group_size)};
  if (!is_legal(found)) {
    fail(name,
         fmt::format("expected {}, got {} bits in groups of {}", kSupported, found.bits, found.group_size));
  }
  warn_if_config_disagrees(name, module, found);

  TensorSource source;
  source.name = name;
  source.format = &mlx_affine(found, *scales.dtype);
  source.shape = shape;
  auto mappings = std::make_shared<std::vector<std::shared_ptr<const MappedFile>>>();
  for (const std::string& part : {name, scales_name, biases_name}) {
    const Location& location = locate(part);
    source.segments.push_back(files_[location.file].segment(*location.entry));
    mappings->push_back(files_[location.file].file());
  }
  source.file = mappings->front();
  if (std::ranges::any_of(*mappings, [&](const auto& mapping) { return mapping != source.file; })) {
    source.file = {mappings, mappings->front().get()};  // parts in several files: hold all of them
  }
  return source;
}

void ModelFolder::warn_if_config_disagrees(const std::string& name, std::string_view module,
                                           std::optional<AffineParameters> found) const {
  const std::optional<QuantizationParameters> said = quantization_.of_module(module, found.has_value());
  const bool agrees = said ? found && said->mode == "affine" && said->affine == *found : !found;
  // Such a config is wrong about many tensors in the same way: the first stands for all.
  if (agrees || !log_ || warned_) return;
  warned_ = true;
  const auto describe = [](const std::string& mode, AffineParameters p) {
    return fmt::format("{} with {} bits in groups of {}", mode, p.bits, p.group_size);
  };
  log_(LogLevel::warning,
       fmt::format("{}: tensor {}: config.json says {}, the shapes say {}; the shapes are taken",
                   file_of(locate(name)), in_quotes(name),
                   said ? describe(said->mode, said->affine) : "not quantized",
                   found ? describe("affine", *found) : "not quantized"));
}

}  // namespace refrain::format
