// A file that appears under its name complete or not at all: written beside it, flushed, then renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace refrain::format {

/// Until `commit` the bytes lie in a temporary file in the folder of `path`; the destructor removes it.
/// Whoever has the old file open or mapped keeps its content.
class AtomicFile {
 public:
  /// Throws FileError when `path` names no file, as "" and "folder/", or the folder does not take a new one.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Writes at a byte offset, in any order. Throws FileError, for example when the disk is full.
  void write(uint64_t offset_bytes, std::span<const std::byte> bytes);
  /// Flushes the file, renames it to `path` and flushes the folder. Throws FileError.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

/// Writes a whole file as AtomicFile does.
void write_file(const std::filesystem::path& path, std::string_view content);

}  // namespace refrain::format
