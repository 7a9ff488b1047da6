// A file that appears under its name complete or not at all: written beside it, flushed, then renamed. What is no file,
// a device or a pipe, is written to and stays what it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace refrain::format {

/// What `path` leads to by symbolic links, whether that exists or not; the links stay. Throws FileError when there is no
/// end of them.
std::filesystem::path end_of_links(const std::filesystem::path& path);

/// Until `commit` the bytes lie in a temporary file beside the one that `path` leads to; the destructor removes it.
/// Whoever has the old file open or mapped keeps its content; its permissions are the new one's.
///
/// Devices, named pipes and open descriptors (/dev/stdout, /dev/fd/3) get the bytes as they come, in order.
class AtomicFile {
 public:
  /// Waits for a reader of a named pipe. Throws FileError when `path` names no file, as "" and "folder/", or is a folder,
  /// or its folder does not take a new file, or what is no file cannot be opened.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Writes at a byte offset, in any order to a file. Throws FileError, for example when the disk is full;
  /// InvalidArgument for bytes out of order to what is no file.
  void write(uint64_t offset_bytes, std::span<const std::byte> bytes);
  /// Flushes the file, renames it to `path` and flushes the folder. Throws FileError.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path target_;     // at the end of its links
  std::filesystem::path temporary_;  // empty: no file, written to as it is
  uint64_t streamed_bytes_ = 0;
  int fd_ = -1;
};

/// Writes a whole file as AtomicFile does.
void write_file(const std::filesystem::path& path, std::string_view content);

}  // namespace refrain::format
