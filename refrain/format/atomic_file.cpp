#include "refrain/format/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <system_error>
#include <utility>

#include "refrain/core/error.h"
#include "refrain/format/json.h"

namespace refrain::format {
namespace {

constexpr int kMaxNames = 1000;
constexpr size_t kNameBytes =
    100;  // of a name, in that of its temporary file, which has no more room than the name
constexpr int kMaxLinks = 40;  // as the kernel

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

/// The number of the open descriptor that `path` stands for, as /proc/self/fd/1 and /dev/fd/1 do, or -1.
int descriptor_of(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::canonical(folder_of(path), error) != fmt::format("/proc/{}/fd", ::getpid())) return -1;
  const std::string name = path.filename().string();
  int fd = -1;
  const auto [end, bad] = std::from_chars(name.data(), name.data() + name.size(), fd);
  return bad == std::errc() && end == name.data() + name.size() ? fd : -1;
}

}  // namespace

std::filesystem::path end_of_links(const std::filesystem::path& path) {
  std::filesystem::path at = path;
  std::error_code error;
  for (int links = 0; links <= kMaxLinks; ++links) {
    if (!std::filesystem::is_symlink(at, error) || descriptor_of(at) >= 0) return at;
    at = folder_of(at) / std::filesystem::read_symlink(at, error);
  }
  fail(path, "cannot follow the link", ELOOP);
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  if (path_.filename().empty())
    throw FileError(in_quotes(path_.string()) + ": expected the name of a file, got none");
  target_ = end_of_links(path_);
  struct stat status {};
  const bool exists = ::stat(path_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) throw FileError(path_.string() + ": expected a file, got a folder");
  const int descriptor = descriptor_of(target_);
  if (descriptor >= 0 || (exists && !S_ISREG(status.st_mode))) {
    fd_ = descriptor >= 0 ? ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
                          : ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    if (fd_ < 0) fail(path_, "cannot open", errno);
    return;
  }
  const std::string name = target_.filename().string().substr(0, kNameBytes);
  for (int attempt = 0; attempt < kMaxNames; ++attempt) {
    temporary_ = folder_of(target_) / fmt::format(".{}.{}-{}.tmp", name, ::getpid(), attempt);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0) {
      if (exists) ::fchmod(fd_, status.st_mode & 0777);
      return;
    }
    if (errno != EEXIST) break;
  }
  fail(path_, "cannot create a file beside it", errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(uint64_t offset_bytes, std::span<const std::byte> bytes) {
  const bool streams = temporary_.empty();
  if (streams && offset_bytes != std::exchange(streamed_bytes_, offset_bytes + bytes.size())) {
    throw InvalidArgument(path_.string() + ": expected bytes in order, for it is no regular file");
  }
  while (!bytes.empty()) {
    const ssize_t written = streams
                                ? ::write(fd_, bytes.data(), bytes.size())
                                : ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset_bytes));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) {
      pollfd room{fd_, POLLOUT, 0};
      ::poll(&room, 1, -1);
      continue;
    }
    if (written < 0) fail(path_, "cannot write", errno);
    if (written == 0) fail(path_, "cannot write", ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset_bytes += static_cast<uint64_t>(written);
  }
}

void AtomicFile::commit() {
  const bool streams = temporary_.empty();
  if (const int error = streams ? 0 : flush(fd_)) fail(path_, "cannot flush", error);
  // Some file systems report a failed write only here.
  const int closed = ::close(std::exchange(fd_, -1));
  const int close_error = closed == 0 || errno == EINTR ? 0 : errno;
  if (streams && close_error == 0) return;
  if (close_error == 0 && ::rename(temporary_.c_str(), target_.c_str()) == 0) {
    const int folder = ::open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) fail(path_, "cannot open its folder", errno);
    const int error = flush(folder);
    ::close(folder);
    if (error != 0 && error != EINVAL) fail(path_, "cannot flush its folder", error);  // EINVAL: cannot be
    return;
  }
  const int error = close_error != 0 ? close_error : errno;
  if (!streams) ::unlink(temporary_.c_str());
  fail(path_, close_error != 0 ? "cannot write" : "cannot rename to it", error);
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(0, std::as_bytes(std::span(content)));
  file.commit();
}

}  // namespace refrain::format
