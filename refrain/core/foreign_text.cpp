#include "refrain/core/foreign_text.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>

namespace refrain {
namespace {

constexpr const char* kSpace = " \t\r\n";
constexpr size_t kLengthBytes = 8;  // with which a safetensors file begins, the last ones zero

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_of_word(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '+' || c == '.';
}

/// Takes leading digits off `rest`; whether there were any.
bool take_digits(std::string_view& rest) {
  const size_t count = static_cast<size_t>(std::ranges::find_if_not(rest, is_digit) - rest.begin());
  rest.remove_prefix(count);
  return count != 0;
}

/// Whether an integral or floating-point type T holds `word`, which is one.
template <class T>
bool fits(std::string_view word) {
  T value{};
  return std::from_chars(word.data(), word.data() + word.size(), value).ec == std::errc();
}

bool is_foreign(std::string_view word) {
  if (word == "NaN" || word == "Infinity" || word == "-Infinity") return true;
  std::string_view rest = word;
  if (rest.starts_with('-')) rest.remove_prefix(1);
  const bool leading_zero = rest.size() > 1 && rest[0] == '0' && is_digit(rest[1]);
  if (leading_zero || !take_digits(rest)) return false;
  if (rest.empty()) return !fits<int64_t>(word) && !fits<uint64_t>(word);
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    if (!take_digits(rest)) return false;
  }
  bool small = false;  // where it does not fit, it is as good as 0
  if (rest.starts_with('e') || rest.starts_with('E')) {
    rest.remove_prefix(1);
    small = rest.starts_with('-');
    if (small || rest.starts_with('+')) rest.remove_prefix(1);
    if (!take_digits(rest)) return false;
  }
  return rest.empty() && !small && !fits<double>(word);
}

}  // namespace

std::string_view saved_instead(std::string_view head) {
  if (head.starts_with("version https://git-lfs") || head.starts_with("version https://hawser"))
    return "a Git LFS pointer, without the file that it stands for";
  if (head.starts_with("\xEF\xBB\xBF")) head.remove_prefix(3);
  head.remove_prefix(std::min(head.find_first_not_of(kSpace), head.size()));
  // A tag or comment, of HTML or XML. Its first bytes are text, which no length of a header is.
  const bool tag = head.size() > 1 && head[0] == '<' &&
                   (head[1] == '!' || head[1] == '?' || std::isalpha(static_cast<unsigned char>(head[1])));
  return tag && head.substr(0, kLengthBytes).find('\0') == head.npos ? "a web page" : "";
}

PlainJson replace_foreign_numbers(std::string_view text) {
  PlainJson result;
  size_t numbers = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    if (text[at] == '"') {
      for (++at; at < text.size() && text[at] != '"'; ++at) at += text[at] == '\\' ? 1 : 0;
      at = std::min(at + 1, text.size());
    } else if (is_of_word(text[at])) {
      while (at < text.size() && is_of_word(text[at])) ++at;
      const std::string_view word = text.substr(start, at - start);
      if (is_foreign(word)) {
        result.numbers.push_back({numbers++, std::string(word)});
        result.text += "0.5";
        continue;
      }
      if (is_digit(word[0]) || word[0] == '-') ++numbers;
    } else {
      ++at;
    }
    result.text += text.substr(start, at - start);
  }
  return result;
}

}  // namespace refrain
