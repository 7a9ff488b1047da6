// What reaches the file system, in which order, and what is left when a call of it fails. The linker hands this program
// the calls of atomic_file.cpp (--wrap in CMakeLists.txt): they are written down, some made to fail, the rest done.
#include "refrain/format/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/format/test_folder.h"

namespace {

/// The calls so far, "fsync folder"; the first one that begins with `bad` gives `error`, or, for a pwrite with error 0,
/// writes `short_bytes` only.
struct Calls {
  std::vector<std::string> seen;
  std::string bad;
  int error = 0;
  size_t short_bytes = 0;
  bool failed = false;

  bool fails(const std::string& call) {
    seen.push_back(call);
    if (failed || bad.empty() || !call.starts_with(bad)) return false;
    failed = true;
    errno = error;
    return true;
  }
};

Calls calls;

std::string kind_of(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && S_ISDIR(status.st_mode) ? " folder" : " file";
}

}  // namespace

extern "C" {
int __real_open(const char* path, int flags, ...);
int __real_close(int fd);
int __real_fsync(int fd);
int __real_rename(const char* from, const char* to);
int __real_unlink(const char* path);
ssize_t __real_pwrite(int fd, const void* bytes, size_t size, off_t offset);

int __wrap_open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  const char* what = (flags & O_DIRECTORY) != 0 ? "open folder" : "open file";
  return calls.fails(what) ? -1 : __real_open(path, flags, mode);
}
int __wrap_close(int fd) {
  const bool fails = calls.fails("close" + kind_of(fd));
  const int error = errno;
  const int result = __real_close(fd);  // also where it fails: the descriptor is gone
  if (!fails) return result;
  errno = error;
  return -1;
}
int __wrap_fsync(int fd) { return calls.fails("fsync" + kind_of(fd)) ? -1 : __real_fsync(fd); }
int __wrap_rename(const char* from, const char* to) {
  return calls.fails("rename") ? -1 : __real_rename(from, to);
}
int __wrap_unlink(const char* path) { return calls.fails("unlink") ? -1 : __real_unlink(path); }
ssize_t __wrap_pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  const bool fails = calls.fails("pwrite");
  if (fails && calls.error != 0) return -1;
  return __real_pwrite(fd, bytes, fails ? calls.short_bytes : size, offset);
}
}

namespace refrain::format {
namespace {

/// What a file holds, read past the calls that are written down.
std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class AtomicFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_.write("out", "old");
    calls = {};
  }
  /// Writes "new content" in two parts, the second first, and gives the message of the error, or nothing.
  std::string write() {
    calls.seen.clear();
    calls.failed = false;
    try {
      AtomicFile file(path_);
      file.write(4, std::as_bytes(std::span(std::string_view("content"))));
      file.write(0, std::as_bytes(std::span(std::string_view("new "))));
      EXPECT_EQ(content_of(path_), "old") << "before commit";
      file.commit();
    } catch (const FileError& error) {
      return error.what();
    }
    return "";
  }
  /// The same with `call` failing once.
  std::string write_where(std::string call, int error, size_t short_bytes = 0) {
    calls.bad = std::move(call), calls.error = error, calls.short_bytes = short_bytes;
    const std::string message = write();
    EXPECT_TRUE(calls.failed) << calls.bad << " was not called";
    return message;
  }
  void expect_only(std::string_view content) const {
    EXPECT_EQ(content_of(path_), content);
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      names.push_back(entry.path().filename().string());
    EXPECT_EQ(names, std::vector<std::string>{"out"});
  }

  TestFolder folder_;
  std::filesystem::path path_ = folder_.path() / "out";
};

TEST_F(AtomicFileTest, TheContentIsOnTheDiskBeforeTheNameAndTheNameBeforeTheEnd) {
  EXPECT_EQ(write(), "");
  EXPECT_EQ(calls.seen, (std::vector<std::string>{"open file", "pwrite", "pwrite", "fsync file", "close file",
                                                  "rename", "open folder", "fsync folder", "close folder"}));
  expect_only("new content");
}

TEST_F(AtomicFileTest, AFailureKeepsTheOldFileAndLeavesNoOther) {
  const auto expect = [&](const char* call, int error, const std::string& says) {
    EXPECT_EQ(write_where(call, error), path_.string() + ": " + says + ": " + std::strerror(error));
    EXPECT_EQ(std::ranges::count(calls.seen, "close file"), call == std::string_view("open file") ? 0 : 1);
    expect_only("old");
  };
  expect("open file", EACCES, "cannot create a file beside it");
  expect("pwrite", ENOSPC, "cannot write");
  expect("fsync file", EIO, "cannot flush");
  expect("close file", EDQUOT, "cannot write");
  expect("rename", EXDEV, "cannot rename to it");
}

TEST_F(AtomicFileTest, AFolderThatCannotBeFlushedIsSaidWhenTheFileIsThere) {
  EXPECT_EQ(write_where("fsync folder", EIO),
            path_.string() + ": cannot flush its folder: " + std::strerror(EIO));
  EXPECT_EQ(calls.seen.back(), "close folder");
  expect_only("new content");
  folder_.write("out", "old");
  EXPECT_EQ(write_where("open folder", EMFILE),
            path_.string() + ": cannot open its folder: " + std::strerror(EMFILE));
  expect_only("new content");
  folder_.write("out", "old");
  EXPECT_EQ(write_where("fsync folder", EINVAL), "") << "a file system that cannot flush folders";
  expect_only("new content");
}

TEST_F(AtomicFileTest, WhatIsInterruptedOrCutShortGoesOn) {
  for (const char* call : {"pwrite", "fsync file", "close file", "fsync folder"}) {
    folder_.write("out", "old");
    EXPECT_EQ(write_where(call, EINTR), "") << call;
    expect_only("new content");
  }
  EXPECT_EQ(std::ranges::count(calls.seen, "fsync folder"), 2);
  folder_.write("out", "old");
  EXPECT_EQ(write_where("pwrite", 0, 3), "");
  expect_only("new content");
  folder_.write("out", "old");
  EXPECT_EQ(write_where("pwrite", 0, 0), path_.string() + ": cannot write: " + std::strerror(ENOSPC));
  expect_only("old");
}

TEST_F(AtomicFileTest, APipeGetsTheBytesAsTheyComeAndStaysOne) {
  const std::filesystem::path pipe = folder_.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = __real_open(pipe.c_str(), O_RDWR);
  const auto part = [](std::string_view text) { return std::as_bytes(std::span(text)); };
  AtomicFile file(pipe);
  file.write(0, part("new "));
  file.write(4, part("content"));
  EXPECT_THROW(file.write(4, part("more")), InvalidArgument);
  std::string seen(20, ' ');
  seen.resize(static_cast<size_t>(::read(reader, seen.data(), seen.size())));
  __real_close(reader);
  EXPECT_EQ(seen, "new content");
  calls.seen.clear();
  file.commit();
  EXPECT_EQ(calls.seen, std::vector<std::string>{"close file"});
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
}

TEST_F(AtomicFileTest, ALinkStaysAndItsFileIsReplaced) {
  std::filesystem::create_symlink("out", folder_.path() / "link");
  std::filesystem::create_symlink("link", folder_.path() / "far");
  const std::filesystem::path file = std::exchange(path_, folder_.path() / "far");
  std::filesystem::permissions(file, std::filesystem::perms::owner_all);
  EXPECT_EQ(write(), "");
  EXPECT_TRUE(std::filesystem::is_symlink(path_) && std::filesystem::is_symlink(folder_.path() / "link"));
  EXPECT_EQ(content_of(file), "new content");
  EXPECT_EQ(std::filesystem::status(file).permissions(), std::filesystem::perms::owner_all);
  std::filesystem::create_symlink("endless", path_ = folder_.path() / "endless");
  EXPECT_THROW(AtomicFile{path_}, FileError);
}

TEST_F(AtomicFileTest, ADescriptorMayBeZero) {
  const int stdin_copy = ::dup(0);
  __real_close(0);  // as a program that was started without: what is opened next is 0
  const std::string message = write();
  EXPECT_EQ(::fcntl(0, F_GETFD), -1) << "left open";
  { AtomicFile dropped(folder_.path() / "dropped"); }
  EXPECT_EQ(::fcntl(0, F_GETFD), -1) << "left open";
  if (stdin_copy >= 0) {
    ::dup2(stdin_copy, 0);
    __real_close(stdin_copy);
  }
  EXPECT_EQ(message, "");
  expect_only("new content");
}

TEST_F(AtomicFileTest, ANameThatIsTakenIsLeftAlone) {
  const std::string taken = ".out." + std::to_string(::getpid()) + "-0.tmp";
  folder_.write(taken, "of another");
  EXPECT_EQ(write(), "");
  EXPECT_EQ(content_of(path_), "new content");
  EXPECT_EQ(content_of(folder_.path() / taken), "of another");
}

TEST_F(AtomicFileTest, ARefusedNameLeavesNothing) {
  for (const std::filesystem::path& none : {std::filesystem::path(), folder_.path() / ""}) {
    calls = {};
    EXPECT_THROW(AtomicFile{none}, FileError);
    EXPECT_TRUE(calls.seen.empty()) << "no file was made anywhere";
  }
  std::filesystem::create_directory(folder_.path() / "taken");
  path_ = folder_.path() / "taken";
  EXPECT_THROW(write_file(path_, "content"), FileError);
  EXPECT_TRUE(std::filesystem::is_empty(path_));
  std::filesystem::remove(path_);
  path_ = folder_.path() / "out";
  expect_only("old");
}

}  // namespace
}  // namespace refrain::format
