// Files in the safetensors format: a reader that maps the file and trusts nothing in it, and a writer.
// Knows names, types and bytes; what the tensors mean is model_folder.h's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/core/dtype.h"
#include "refrain/core/mapped_file.h"
#include "refrain/core/shape.h"
#include "refrain/core/tensor_source.h"
#include "refrain/format/atomic_file.h"

namespace refrain::format {

/// Limits of a header; the format itself sets only the first.
constexpr uint64_t kSafetensorsMaxHeaderBytes = 100'000'000;
constexpr size_t kSafetensorsMaxTensors = 1'000'000;
constexpr size_t kSafetensorsMaxNameBytes = 512;
constexpr size_t kSafetensorsMaxDepth = 4;

/// One tensor of a file.
struct SafetensorsEntry {
  std::string name;
  std::string_view type_name;  ///< as in the file: "BF16", "F8_E4M3"; of static storage
  std::optional<DType> dtype;  ///< nothing for types that are known but have no DType (F8, F4, C64, …)
  Shape shape;
  std::span<const std::byte> bytes;  ///< may start at any address
};

/// A file that has been checked as a whole: header, types, shapes, and that the tensors cover the data
/// without hole or overlap. Immutable; copies of its spans need the file kept alive.
class SafetensorsFile {
 public:
  /// Maps or reads a file and checks it. Throws FileError naming file, tensor, what was expected and what was found.
  static SafetensorsFile open(const std::filesystem::path& path, FileAccess access = FileAccess::map);
  /// Checks bytes that the caller keeps alive; `name` stands for the path in messages.
  static SafetensorsFile parse(std::span<const std::byte> bytes, std::string name);

  const std::string& path() const { return path_; }
  /// In the order of their data.
  std::span<const SafetensorsEntry> tensors() const { return tensors_; }
  /// Null when there is none of that name.
  const SafetensorsEntry* find(std::string_view name) const;
  /// Type, shape and bytes. Throws FileError when the tensor is absent or its type has no DType.
  TensorSegment segment(std::string_view name) const;
  TensorSegment segment(const SafetensorsEntry& entry) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Its memory; null after `parse`.
  const std::shared_ptr<const MappedFile>& file() const { return file_; }

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> file_;
  std::vector<SafetensorsEntry> tensors_;
  std::vector<uint32_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

/// What a writer is told of a tensor before its bytes.
struct SafetensorsSpec {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// Writes a file without holding it in memory. The data starts at a multiple of 4096 bytes; tensors lie in
/// the order of descending element size, then name. Bytes of each tensor are appended in order, the tensors
/// in any. Nothing is visible under `path` before `commit`; a writer that is dropped leaves nothing.
class SafetensorsWriter {
 public:
  static constexpr size_t kDataAlignment = 4096;

  /// Throws FileError when the file cannot be created; InvalidArgument for duplicate or unusable specs.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsSpec> specs,
                    const std::map<std::string, std::string>& metadata = {});

  /// Appends bytes to a tensor. Throws InvalidArgument for an unknown name or more bytes than it has.
  void append(std::string_view name, std::span<const std::byte> bytes);
  /// Makes the file appear. Throws InvalidArgument when a tensor lacks bytes, FileError when the disk fails.
  void commit();
  /// Bytes of the whole file.
  uint64_t size_bytes() const { return end_; }

 private:
  struct Slot {
    uint64_t next = 0;
    uint64_t end = 0;
  };

  AtomicFile file_;
  uint64_t end_ = 0;
  std::map<std::string, Slot, std::less<>> slots_;
};

/// The name of a DType in a file ("BF16").
std::string_view safetensors_name(DType dtype);

}  // namespace refrain::format
