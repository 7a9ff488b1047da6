// The part `decoder` of the pipeline: turns the spellings of tokens back into bytes of text.
#pragma once

#include <string>
#include <string_view>

namespace refrain::text {

class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Appends the bytes of one token. They need not be whole characters; whoever collects them repairs the
  /// rest.
  virtual void append(std::string_view spelling, bool first, std::string& bytes) const = 0;
};

/// Characters of the byte alphabet become bytes.
class ByteLevelDecoder final : public Decoder {
 public:
  void append(std::string_view spelling, bool first, std::string& bytes) const override;
};

/// What a file without a decoder means: spellings with spaces between them.
class SpaceDecoder final : public Decoder {
 public:
  void append(std::string_view spelling, bool first, std::string& bytes) const override;
};

}  // namespace refrain::text
