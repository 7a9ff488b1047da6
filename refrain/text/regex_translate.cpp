// translate_pattern: a reader of the expressions that tokenizers use, which writes them for PCRE2.
#include <fmt/format.h>

#include <optional>
#include <utility>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/text/regex.h"
#include "refrain/text/unicode.h"

namespace refrain::text {
namespace {

std::vector<CodePointRange> complement(const std::vector<CodePointRange>& ranges) {
  std::vector<CodePointRange> out;
  uint32_t next = 0;
  for (const CodePointRange& range : ranges) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= 0x10FFFF) out.push_back({next, 0x10FFFF});
  return out;
}

std::string spell(const std::vector<CodePointRange>& ranges) {
  std::string out;
  const auto put = [&](uint32_t first, uint32_t last) {
    if (first > last) return;
    fmt::format_to(std::back_inserter(out), "\\x{{{:X}}}", first);
    if (first != last) fmt::format_to(std::back_inserter(out), "-\\x{{{:X}}}", last);
  };
  for (const CodePointRange& range : ranges) {  // PCRE2 refuses surrogates
    if (range.last < 0xD800 || range.first > 0xDFFF) {
      put(range.first, range.last);
    } else {
      put(range.first, std::min(range.last, 0xD7FFu));
      put(std::max(range.first, 0xE000u), range.last);
    }
  }
  return out;
}

class Translator {
 public:
  Translator(std::string_view pattern, bool expand_all) : in_(pattern), expand_all_(expand_all) {}

  std::string run() {
    if (const auto offset = first_invalid_utf8(in_)) fail("invalid UTF-8", *offset);
    std::vector<bool> groups;  // of each open group: whether it ignores case
    while (at_ < in_.size()) {
      const bool ignore_case = !groups.empty() && groups.back();
      const char c = in_[at_];
      if (static_cast<unsigned char>(c) >= 0x80 && ignore_case)
        fail("a case-insensitive non-ASCII character");
      switch (c) {
        case '\\':
          if (ignore_case) fail("an escape in a case-insensitive group");
          escape(false);
          break;
        case '[':
          if (ignore_case) fail("a class in a case-insensitive group");
          char_class();
          break;
        case '(':
          groups.push_back(open_group() || ignore_case);
          break;
        case ')':
          if (groups.empty()) fail("a parenthesis that closes nothing");
          groups.pop_back();
          take(1);
          break;
        case '{':
          interval();
          break;
        default:
          take(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(std::string_view what, std::optional<size_t> offset = std::nullopt) const {
    throw InvalidArgument(
        fmt::format("regular expression: {} at byte {} is not supported", what, offset.value_or(at_)));
  }

  bool looking_at(std::string_view what) const { return in_.substr(at_).starts_with(what); }

  void take(size_t count) {
    out_.append(in_.substr(at_, count));
    at_ += count;
  }

  /// Returns whether the group starts to ignore case.
  bool open_group() {
    if (looking_at("(*")) fail("'(*'");
    if (!looking_at("(?")) {
      take(1);
      return false;
    }
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"}) {
      if (!looking_at(known)) continue;
      take(known.size());
      return known == "(?i:";
    }
    fail("this kind of group");
  }

  /// `{n}`, `{n,}` or `{n,m}`; other braces mean different things to the two engines.
  void interval() {
    const size_t close = in_.find('}', at_);
    const std::string_view body =
        close == std::string_view::npos ? std::string_view() : in_.substr(at_ + 1, close - at_ - 1);
    const size_t digits = std::min(body.find_first_not_of("0123456789"), body.size());
    const bool comma = digits < body.size() && body[digits] == ',';
    const std::string_view rest = body.substr(std::min(body.size(), digits + (comma ? 1 : 0)));
    if (digits == 0 || rest.find_first_not_of("0123456789") != std::string_view::npos) fail("this brace");
    take(body.size() + 2);
    if (at_ < in_.size() && in_[at_] == '+') fail("a possessive interval");
  }

  void put_set(const std::vector<CodePointRange>& ranges, bool negated, bool in_class) {
    if (in_class) {
      out_ += spell(negated ? complement(ranges) : ranges);
    } else {
      out_ += (negated ? "[^" : "[") + spell(ranges) + "]";
    }
  }

  void property(bool in_class) {
    bool negated = in_[at_ + 1] == 'P';
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos)
      fail("a property without braces");
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const auto set = category_set(name);
    if (!set) fail(fmt::format("the property '{}'", name));
    at_ = close + 1;
    const auto added = expand_all_ ? std::nullopt : ranges_added_since_unicode_14(*set);
    if (!added || (negated && in_class)) {
      put_set(category_ranges(*set), negated, in_class);
    } else if (in_class) {
      out_ += fmt::format("\\p{{{}}}{}", name, spell(*added));
    } else {
      out_ += fmt::format("[{}\\p{{{}}}{}]", negated ? "^" : "", name, spell(*added));
    }
  }

  void code_point(std::string_view digits, size_t length) {
    uint32_t value = 0;
    for (const char c : digits) {
      const int digit = c >= '0' && c <= '9'                 ? c - '0'
                        : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                             : -1;
      if (digit < 0 || value > 0x10FFFF) fail("this code point");
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    if (digits.empty() || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) fail("this code point");
    out_ += fmt::format("\\x{{{:X}}}", value);
    at_ += length;
  }

  void escape(bool in_class) {
    if (at_ + 1 >= in_.size()) fail("a lone backslash");
    const char c = in_[at_ + 1];
    switch (c) {
      case 'p':
      case 'P':
        return property(in_class);
      case 's':
      case 'S':
        at_ += 2;
        return put_set(white_space_ranges(), c == 'S', in_class);
      case 'd':
      case 'D':
        at_ += 2;
        return put_set(category_ranges(*category_set("Nd")), c == 'D', in_class);
      case 'v':  // one character here, a class there
        at_ += 2;
        out_ += "\\x{B}";
        return;
      case 'x': {
        if (in_.substr(at_).starts_with("\\x{")) {
          const size_t close = in_.find('}', at_);
          if (close == std::string_view::npos) fail("this code point");
          return code_point(in_.substr(at_ + 3, close - at_ - 3), close + 1 - at_);
        }
        const std::string_view digits = in_.substr(at_ + 2, 2);
        if (digits.size() != 2 || digits[0] > '7') fail("a byte that is not ASCII");
        return code_point(digits, 4);
      }
      case 'u':
        if (in_.size() - at_ < 6) fail("this code point");
        return code_point(in_.substr(at_ + 2, 4), 6);
      case 'r':
      case 'n':
      case 't':
      case 'f':
        return take(2);
      default:
        break;
    }
    const bool alphanumeric = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
    if (alphanumeric || static_cast<unsigned char>(c) >= 0x80)
      fail(fmt::format("the escape '\\{}'", alphanumeric ? c : '?'));
    take(2);
  }

  void char_class() {
    const size_t open = at_;
    take(1);
    if (at_ < in_.size() && in_[at_] == '^') take(1);
    if (at_ < in_.size() && in_[at_] == ']') fail("an empty class");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') fail("a class in a class");
      if (looking_at("&&")) fail("an intersection of classes");
      if (in_[at_] == '\\') {
        const char kind = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
        escape(true);
        // "\s-x" is a range to neither engine, but they disagree on what it is.
        const bool set = std::string_view("pPsSdD").find(kind) != std::string_view::npos;
        if (set && looking_at("-") && !looking_at("-]")) fail("a range that starts with a set");
      } else {
        take(1);
      }
    }
    if (at_ >= in_.size()) fail("a class without end", open);
    take(1);
  }

  std::string_view in_;
  bool expand_all_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string translate_pattern(std::string_view pattern, bool expand_all) {
  return Translator(pattern, expand_all).run();
}

}  // namespace refrain::text
