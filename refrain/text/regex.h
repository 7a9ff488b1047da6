// The regular expressions of tokenizer.json: Oniguruma's syntax, run by PCRE2 with our own Unicode tables.
// Only what means the same in both is accepted; everything else is refused with its place.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace refrain::text {

/// The pattern as PCRE2 (UTF, UCP, multiline) has to read it.
/// Properties, `\s` and `\d` follow our tables: `expand_all` writes each one out as ranges; else PCRE2's own
/// property of Unicode 14 is kept and what it lacks is added, which matches faster.
/// Throws InvalidArgument naming the byte offset for what is not supported.
std::string translate_pattern(std::string_view pattern, bool expand_all);

/// A compiled expression. Immutable: threads may share it.
class Regex {
 public:
  /// Throws InvalidArgument when `pattern` is not supported or not valid. Properties are expanded as
  /// `translate_pattern` says; by default wherever PCRE2's Unicode is not version 14.
  explicit Regex(std::string_view pattern, std::optional<bool> expand_all = std::nullopt);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Calls `found(begin, end)` for each match in valid UTF-8, left to right, not overlapping. An empty match
  /// is not accepted where the match before it ended. Throws InvalidArgument when a match exceeds its limit
  /// of work.
  void for_each_match(std::string_view text, const std::function<void(size_t, size_t)>& found) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace refrain::text
