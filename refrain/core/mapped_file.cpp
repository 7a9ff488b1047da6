#include "refrain/core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "refrain/core/error.h"

namespace refrain {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw FileError(path.string() + ": " + what);
}

std::string error_text() { return std::generic_category().message(errno); }

class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path) : fd_(::open(path.c_str(), kFlags)) {
    if (fd_ < 0) fail(path, error_text());
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  // Non-blocking for the sake of named pipes, whose opening would wait for a writer.
  static constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

  int fd_;
};

size_t regular_file_size(const Descriptor& file, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail(path, error_text());
  if (!S_ISREG(status.st_mode)) fail(path, "expected a regular file");
  return static_cast<size_t>(status.st_size);
}

/// Reads up to `size` bytes; how many there were.
size_t read_up_to(const Descriptor& file, const std::filesystem::path& path, char* to, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.get(), to + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path, error_text());
    if (got == 0) break;  // truncated since fstat
    done += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path, FileAccess access) {
  const Descriptor file(path);
  const size_t size = regular_file_size(file, path);
  if (size == 0) return std::shared_ptr<const MappedFile>(new MappedFile(path, nullptr, 0));
  const bool maps = access == FileAccess::map;
  void* const address = ::mmap(nullptr, size, maps ? PROT_READ : PROT_READ | PROT_WRITE,
                               maps ? MAP_PRIVATE : MAP_PRIVATE | MAP_ANONYMOUS, maps ? file.get() : -1, 0);
  if (address == MAP_FAILED) fail(path, error_text());
  std::shared_ptr<const MappedFile> result(new MappedFile(path, address, size));
  if (maps) return result;
  const size_t got = read_up_to(file, path, static_cast<char*>(address), size);
  if (got != size) {
    fail(path, "expected " + std::to_string(size) + " bytes, got " + std::to_string(got) +
                   ": it has been cut while it was read");
  }
  ::mprotect(address, size, PROT_READ);
  return result;
}

MappedFile::~MappedFile() {
  if (size_bytes_ != 0) ::munmap(address_, size_bytes_);
}

std::string read_text_file(const std::filesystem::path& path, size_t limit_bytes) {
  const Descriptor file(path);
  const size_t size = regular_file_size(file, path);
  if (size > limit_bytes) {
    fail(path, "expected at most " + std::to_string(limit_bytes) + " bytes, got " + std::to_string(size));
  }
  std::string text(size, '\0');
  text.resize(read_up_to(file, path, text.data(), size));
  return text;
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator iterator(folder, error);
  for (; !error && iterator != std::filesystem::directory_iterator(); iterator.increment(error))
    names.push_back(iterator->path().filename().string());
  if (error) fail(folder, error.message());
  std::ranges::sort(names);
  return names;
}

}  // namespace refrain
