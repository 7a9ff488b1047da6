#include "cli/streams.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <system_error>

#include "refrain/core/error.h"

namespace refrain::cli {
namespace {

constexpr size_t kReadBytes = size_t{1} << 16;
constexpr int kForever = -1;
constexpr int kMessageTimeoutMs = 1000;  // for a reader of messages, where stderr does not block

[[noreturn]] void fail(const std::string& name, const char* what) {
  throw FileError(fmt::format("{}: {}{}", name, what, std::generic_category().message(errno)));
}

/// Whether a call that failed is worth another try: it was interrupted, or `events` have come to a descriptor that does
/// not block. Keeps errno otherwise.
bool again(int fd, short events, int timeout_ms) {
  if (errno == EINTR) return true;
  if (errno != EAGAIN) return false;
  pollfd waited{fd, events, 0};
  const int ready = ::poll(&waited, 1, timeout_ms);
  const bool interrupted = ready < 0 && errno == EINTR;
  errno = EAGAIN;
  return ready > 0 || interrupted;
}

/// Whether all of `text` was written.
bool write_all(int fd, std::string_view text, int timeout_ms) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (!again(fd, POLLOUT, timeout_ms)) {
      return false;
    }
  }
  return true;
}

size_t read_some(int fd, std::span<char> buffer, const std::string& name, const char* what) {
  while (true) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got >= 0) return static_cast<size_t>(got);
    if (!again(fd, POLLIN, kForever)) fail(name, what);
  }
}

struct Descriptor {
  ~Descriptor() {
    if (fd > STDERR_FILENO) ::close(fd);
  }
  int fd;
};

}  // namespace

void open_missing_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    // The lowest that is free: this one. Open for the wrong way, it is as good as closed.
    if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

void say_text(std::string_view text) {
  static bool taken = true;  // where nothing was taken, nobody is waited for again
  const auto previous = std::signal(SIGPIPE, SIG_IGN);
  taken = write_all(STDERR_FILENO, text, taken ? kMessageTimeoutMs : 0);
  std::signal(SIGPIPE, previous);
}

void write_stdout(std::string_view text) {
  if (!write_all(STDOUT_FILENO, text, kForever)) fail("stdout", "cannot write: ");
}

bool stdin_pauses() {
  pollfd waited{STDIN_FILENO, POLLIN, 0};
  return ::poll(&waited, 1, 0) == 0;
}

size_t read_stdin(std::span<char> buffer) {
  return read_some(STDIN_FILENO, buffer, "stdin", "cannot read: ");
}

std::string read_input(const std::filesystem::path& path) {
  const bool from_stdin = path == "-";
  const Descriptor file{from_stdin ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  const std::string name = from_stdin ? "stdin" : path.string();
  if (file.fd < 0) fail(name, "");
  std::string text;
  for (size_t got = 1; got != 0;) {
    const size_t done = text.size();
    text.resize(done + kReadBytes);
    got = read_some(file.fd, std::span(text).subspan(done), name, from_stdin ? "cannot read: " : "");
    text.resize(done + got);
  }
  return text;
}

}  // namespace refrain::cli
