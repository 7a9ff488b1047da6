// The standard streams and other input, whatever they are: pipes, devices, descriptors that do not block or are closed.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace refrain::cli {

/// Opens what the program was started without, so that no file gets the number of a standard stream; reading or writing
/// it fails all the same.
void open_missing_streams();

/// `text` to stderr. Where that takes nothing, being closed or full, it is lost, and nothing else happens.
void say_text(std::string_view text);
template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  say_text(fmt::format(format, std::forward<Args>(args)...));
}

/// All of `text` to stdout, at once. Throws Error when it cannot be written.
void write_stdout(std::string_view text);

/// Whether a read of stdin would wait now.
bool stdin_pauses();
/// Bytes of stdin as soon as there are any; their number, 0 at the end. Throws Error when it cannot be read.
size_t read_stdin(std::span<char> buffer);
/// All that a file of any kind holds, a pipe included, or stdin if `path` is "-". Throws FileError naming it.
std::string read_input(const std::filesystem::path& path);

}  // namespace refrain::cli
