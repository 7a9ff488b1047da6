#include "refrain/text/normalizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <span>

#include "refrain/core/error.h"
#include "refrain/text/unicode.h"

namespace refrain::text {
namespace {

// No character below U+0300 changes under NFC, nor combines with one that follows it below U+0300.
bool is_surely_nfc(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) >= 0xCC; });
}

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

/// Sorts each run of combining marks by class. utf8proc would do so in a time that grows with the square of
/// the run.
void order_marks(std::vector<utf8proc_int32_t>& code_points) {
  for (size_t begin = 0; begin < code_points.size();) {
    size_t end = begin;
    while (end < code_points.size() && combining_class(code_points[end]) != 0) ++end;
    if (end > begin + 1) {
      std::stable_sort(code_points.begin() + static_cast<std::ptrdiff_t>(begin),
                       code_points.begin() + static_cast<std::ptrdiff_t>(end),
                       [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    }
    begin = std::max(end, begin + 1);
  }
}

void decompose(char32_t code_point, std::vector<utf8proc_int32_t>& out) {
  std::array<utf8proc_int32_t, 32> buffer{};
  int boundary = 0;
  const utf8proc_ssize_t count = utf8proc_decompose_char(
      static_cast<utf8proc_int32_t>(code_point), buffer.data(), buffer.size(),
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &boundary);
  if (count < 0 || static_cast<size_t>(count) > buffer.size()) {
    throw Error(
        fmt::format("normalization: U+{:04X} has no decomposition", static_cast<uint32_t>(code_point)));
  }
  out.insert(out.end(), buffer.begin(), buffer.begin() + count);
}

void compose(std::vector<utf8proc_int32_t>& code_points, std::string& out) {
  order_marks(code_points);
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (count < 0) throw Error("normalization: composition failed");
  for (const utf8proc_int32_t c : std::span(code_points).first(static_cast<size_t>(count))) {
    append_utf8(static_cast<char32_t>(c), out);
  }
  code_points.clear();
}

}  // namespace

std::string NfcNormalizer::apply(std::string_view text) const {
  if (is_surely_nfc(text)) return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> code_points;
  for (size_t position = 0; position < text.size();) {
    const char32_t code_point = next_code_point(text, position);
    if (is_nfc_inert(code_point)) {
      compose(code_points, out);
      append_utf8(code_point, out);
    } else {
      decompose(code_point, code_points);
    }
  }
  compose(code_points, out);
  return out;
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;
  for (size_t at = text.find(from); at != text.npos; at = text.find(from, begin)) {
    out.append(text.substr(begin, at - begin)).append(to);
    begin = at + from.size();
  }
  return out.append(text.substr(begin));
}

std::string NormalizerSequence::apply(std::string_view text) const {
  std::string out(text);
  for (const auto& part : parts_) out = part->apply(out);
  return out;
}

}  // namespace refrain::text
