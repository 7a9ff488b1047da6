// A file read-only in memory for as long as somebody holds it: mapped, or read.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace refrain {

enum class FileAccess {
  map,  ///< pages come from the file as they are touched; one that was cut off meanwhile ends the process by SIGBUS
  read,  ///< all of it into memory at once, after which the file is no matter
};

/// Whoever keeps a span of `bytes()` keeps the shared_ptr too. A mapped file must not be truncated meanwhile, nor
/// written to; replacing it by rename is safe.
class MappedFile {
 public:
  /// Throws FileError when `path` is not a regular file that can be read. An empty file gives an empty span.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path,
                                                FileAccess access = FileAccess::map);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(address_), size_bytes_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile(std::filesystem::path path, void* address, size_t size_bytes)
      : path_(std::move(path)), address_(address), size_bytes_(size_bytes) {}

  std::filesystem::path path_;
  void* address_;
  size_t size_bytes_;
};

/// The whole content of a small text file. Throws FileError when it cannot be read or exceeds `limit_bytes`.
std::string read_text_file(const std::filesystem::path& path, size_t limit_bytes = size_t{256} << 20);

/// The names of what lies in a folder, sorted. Throws FileError when it cannot be listed.
std::vector<std::string> names_in(const std::filesystem::path& folder);

}  // namespace refrain
