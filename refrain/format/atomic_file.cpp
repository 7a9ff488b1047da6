#include "refrain/format/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "refrain/core/error.h"
#include "refrain/format/json.h"

namespace refrain::format {
namespace {

constexpr int kMaxNames = 1000;

[[noreturn]] void fail(const std::filesystem::path& path, const char* what, int error) {
  throw FileError(fmt::format("{}: {}: {}", path.string(), what, std::generic_category().message(error)));
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

int flush(int fd) {
  while (::fsync(fd) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  if (path_.filename().empty())
    throw FileError(in_quotes(path_.string()) + ": expected the name of a file, got none");
  for (int attempt = 0; attempt < kMaxNames; ++attempt) {
    temporary_ =
        folder_of(path_) / fmt::format(".{}.{}-{}.tmp", path_.filename().string(), ::getpid(), attempt);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0) return;
    if (errno != EEXIST) break;
  }
  fail(path_, "cannot create a file beside it", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(uint64_t offset_bytes, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset_bytes));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path_, "cannot write", errno);
    if (written == 0) fail(path_, "cannot write", ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset_bytes += static_cast<uint64_t>(written);
  }
}

void AtomicFile::commit() {
  if (const int error = flush(fd_)) fail(path_, "cannot flush", error);
  // Some file systems report a failed write only here.
  const int closed = ::close(std::exchange(fd_, -1));
  const int close_error = closed == 0 ? 0 : errno;
  if (close_error == 0 || close_error == EINTR) {
    if (::rename(temporary_.c_str(), path_.c_str()) == 0) {
      const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      if (folder < 0) fail(path_, "cannot open its folder", errno);
      const int error = flush(folder);
      ::close(folder);
      if (error != 0 && error != EINVAL) fail(path_, "cannot flush its folder", error);  // EINVAL: cannot be
      return;
    }
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail(path_, "cannot rename to it", error);
  }
  ::unlink(temporary_.c_str());
  fail(path_, "cannot write", close_error);
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(0, std::as_bytes(std::span(content)));
  file.commit();
}

}  // namespace refrain::format
