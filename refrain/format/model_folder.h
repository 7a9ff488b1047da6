// A model folder in the layout of MLX or Hugging Face: config.json and one or more safetensors files.
// Finds tensors and describes how each is encoded; the meaning of config.json beyond its quantization block
// is for refrain/model, and the tokenizer's files are for refrain/text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/core/log.h"
#include "refrain/core/mapped_file.h"
#include "refrain/core/tensor_source.h"
#include "refrain/format/json.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/safetensors.h"

namespace refrain::format {

/// What config.json says about the encoding of one module.
struct QuantizationParameters {
  AffineParameters affine;
  std::string mode = "affine";  ///< also "mxfp4", "mxfp8", "nvfp4"

  bool operator==(const QuantizationParameters&) const = default;
};

/// The block `quantization` of config.json (or its copy `quantization_config`, also inside `text_config`).
struct QuantizationConfig {
  /// An override for one module path: parameters, or false (not quantized), or true (the defaults).
  struct Override {
    bool quantized = true;
    std::optional<QuantizationParameters> parameters;
  };

  std::optional<QuantizationParameters> defaults;  ///< nothing: the block is absent
  std::map<std::string, Override, std::less<>> overrides;

  /// What the block says of a module: its override, else the defaults when it has scales; nothing: plain.
  std::optional<QuantizationParameters> of_module(std::string_view module, bool has_scales) const;
};

/// Throws FileError when the block is malformed or of a method other than MLX's.
QuantizationConfig parse_quantization(const Json& config);

/// Whether a tensor of this name is a table that follows from the configuration, which older files store.
bool is_derived(std::string_view tensor);

class ModelFolder {
 public:
  struct Totals {
    size_t files = 0;
    size_t tensors = 0;
    size_t aligned_tensors = 0;    ///< data at a multiple of 8 bytes: usable where they lie in the mapping
    size_t unaligned_tensors = 0;  ///< have to be copied
    uint64_t bytes = 0;            ///< of all tensors
  };

  /// Reads config.json and the headers of all files, and maps or reads them. With model.safetensors.index.json its files are
  /// taken, else `model*.safetensors`; where the index is stale, what its files lack is looked for in those. One of those
  /// that has only tensors that nothing else has is taken anyway. A tensor that is nowhere is an error of whoever asks
  /// for it. Throws FileError.
  static ModelFolder open(const std::filesystem::path& path, LogCallback log = {},
                          FileAccess access = FileAccess::map);

  ModelFolder(ModelFolder&&) = default;
  ModelFolder& operator=(ModelFolder&&) = default;

  const std::filesystem::path& path() const { return path_; }
  const Json& config() const { return config_; }
  const QuantizationConfig& quantization() const { return quantization_; }

  /// Sorted.
  std::vector<std::string> tensor_names() const;
  bool has(std::string_view name) const { return find(name) != nullptr; }
  /// Null when there is none of that name.
  const SafetensorsEntry* find(std::string_view name) const;
  Totals totals() const;

  /// One tensor as it lies in its file, whatever its type. Throws FileError when absent or of an unusable
  /// type.
  TensorSource tensor(std::string_view name) const;
  /// As above, and checks that it is f32, f16 or bf16 of the shape `expected`.
  TensorSource tensor(std::string_view name, const Shape& expected) const;
  /// The matrix [rows, columns] of the module `module` ("model.layers.0.mlp.up_proj"): plain, or MLX affine when
  /// `module`.scales exists.
  ///
  /// Bits and group size follow from the shapes; when config.json disagrees the log gets one warning that
  /// names the first such tensor. Throws FileError when a tensor is absent, contradicts the shape, or has an
  /// encoding other than affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
  TensorSource weight(std::string_view module, int64_t rows, int64_t columns) const;

 private:
  struct Location {
    uint32_t file;
    const SafetensorsEntry* entry;
  };

  ModelFolder(std::filesystem::path path, Json config, LogCallback log)
      : path_(std::move(path)), config_(std::move(config)), log_(std::move(log)) {}
  const Location& locate(std::string_view name) const;
  const std::string& file_of(const Location& location) const { return files_[location.file].path(); }
  [[noreturn]] void fail(std::string_view tensor, const std::string& what) const;
  TensorSource plain_weight(const std::string& name, std::string_view module, const Shape& shape) const;
  TensorSource affine_weight(const std::string& name, std::string_view module, const Shape& shape) const;
  void warn_if_config_disagrees(const std::string& name, std::string_view module,
                                std::optional<AffineParameters> found) const;

  void add(SafetensorsFile file, size_t first_file);
  void add_stray(const std::filesystem::path& file, FileAccess access);

  std::filesystem::path path_;
  Json config_;
  LogCallback log_;
  mutable bool warned_ = false;
  QuantizationConfig quantization_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string_view, Location, std::less<>> tensors_;  // keys lie in files_
  std::map<std::string, std::string, std::less<>> index_;      // tensors and the files that they should be in
};

}  // namespace refrain::format
