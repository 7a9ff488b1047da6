#include "refrain/text/regex.h"

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <new>

#include "refrain/core/error.h"

namespace refrain::text {
namespace {

constexpr size_t kMaxPatternBytes = 65536;
constexpr uint32_t kMaxHeapKibibytes = 262144;
// Steps of backtracking in one match: a constant, and a share for each byte, since a run of white space is
// walked back once.
constexpr uint32_t kMatchSteps = 10'000'000;
constexpr uint64_t kMatchStepsPerByte = 16;

template <auto release>
struct Release {
  template <class T>
  void operator()(T* pointer) const {
    release(pointer);
  }
};
template <class T, auto release>
using Handle = std::unique_ptr<T, Release<release>>;

template <class T>
T* checked(T* pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

std::string error_text(int code) {
  std::array<unsigned char, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

bool has_unicode_14() {
  std::array<char, 64> version{};
  if (pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, nullptr) > static_cast<int>(version.size())) return false;
  pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version.data());
  return std::string_view(version.data()) == "14.0.0";
}

}  // namespace

struct Regex::Impl {
  Handle<pcre2_code, pcre2_code_free> code;
};

Regex::Regex(std::string_view pattern, std::optional<bool> expand_all) : impl_(std::make_unique<Impl>()) {
  if (pattern.size() > kMaxPatternBytes) {
    throw InvalidArgument(fmt::format("regular expression: expected at most {} bytes, got {}",
                                      kMaxPatternBytes, pattern.size()));
  }
  const std::string translated = translate_pattern(pattern, expand_all.value_or(!has_unicode_14()));
  const Handle<pcre2_compile_context, pcre2_compile_context_free> context(
      checked(pcre2_compile_context_create(nullptr)));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  impl_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                  &offset, context.get()));
  if (!impl_->code) throw InvalidArgument(fmt::format("regular expression: {}", error_text(error)));
  // Without machine code (no such processor, no executable memory) the interpreter matches the same.
  pcre2_jit_compile(impl_->code.get(), PCRE2_JIT_COMPLETE);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

void Regex::for_each_match(std::string_view text, const std::function<void(size_t, size_t)>& found) const {
  const Handle<pcre2_match_data, pcre2_match_data_free> data(
      checked(pcre2_match_data_create_from_pattern(impl_->code.get(), nullptr)));
  const Handle<pcre2_match_context, pcre2_match_context_free> context(
      checked(pcre2_match_context_create(nullptr)));
  pcre2_set_match_limit(context.get(), static_cast<uint32_t>(std::min<uint64_t>(
                                           UINT32_MAX, kMatchSteps + kMatchStepsPerByte * text.size())));
  pcre2_set_heap_limit(context.get(), kMaxHeapKibibytes);

  std::optional<size_t> last_end;
  for (size_t position = 0; position <= text.size();) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(impl_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), position,
                         PCRE2_NO_UTF_CHECK | options, data.get(), context.get());
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return;
    if (result < 0) {
      throw InvalidArgument(fmt::format("regular expression: {} at byte {}", error_text(result), position));
    }
    const PCRE2_SIZE* const bounds = pcre2_get_ovector_pointer(data.get());
    const size_t begin = bounds[0], end = bounds[1];
    if (begin > end || begin < position)
      throw InvalidArgument("regular expression: a match that runs backwards");
    if (begin == end && last_end == end) {
      do {
        ++position;
      } while (position < text.size() && (static_cast<unsigned char>(text[position]) & 0xC0) == 0x80);
      continue;
    }
    found(begin, end);
    position = end;
    last_end = end;
  }
}

}  // namespace refrain::text
