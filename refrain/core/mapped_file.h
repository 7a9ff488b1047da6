// A file mapped read-only into memory for as long as somebody holds it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace refrain {

/// Whoever keeps a span of `bytes()` keeps the shared_ptr too. The file must not be truncated meanwhile;
/// replacing it by rename is safe.
class MappedFile {
 public:
  /// Throws FileError when `path` is not a regular file that can be read. An empty file gives an empty span.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
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
