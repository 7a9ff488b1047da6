// The part `decoder` of the pipeline: turns the spellings of tokens back into bytes of text.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace refrain::text {

class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Appends the bytes of one token. They need not be whole characters; whoever collects them repairs the
  /// rest.
  virtual void append(std::string_view spelling, bool first, std::string& bytes) const = 0;
  /// Whether a token stands for one byte of a run of such tokens, which is text or is not as a whole.
  virtual bool is_byte(std::string_view /*spelling*/) const { return false; }
};

/// Characters of the byte alphabet become bytes.
class ByteLevelDecoder final : public Decoder {
 public:
  void append(std::string_view spelling, bool first, std::string& bytes) const override;
};

/// `Replace` of strings in each spelling, one after the other; then, with `byte_fallback`, "<0x0A>" becomes that
/// byte.
class SpellingDecoder final : public Decoder {
 public:
  using Replacement = std::pair<std::string, std::string>;
  SpellingDecoder(std::vector<Replacement> replacements, bool byte_fallback)
      : replacements_(std::move(replacements)), byte_fallback_(byte_fallback) {}
  void append(std::string_view spelling, bool first, std::string& bytes) const override;
  bool is_byte(std::string_view spelling) const override;

 private:
  std::string replace_all(std::string_view spelling) const;
  std::vector<Replacement> replacements_;
  bool byte_fallback_;
};

/// What a file without a decoder means: spellings with spaces between them.
class SpaceDecoder final : public Decoder {
 public:
  void append(std::string_view spelling, bool first, std::string& bytes) const override;
};

}  // namespace refrain::text
