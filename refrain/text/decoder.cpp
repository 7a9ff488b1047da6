#include "refrain/text/decoder.h"

#include "refrain/text/byte_level.h"

namespace refrain::text {

void ByteLevelDecoder::append(std::string_view spelling, bool /*first*/, std::string& bytes) const {
  append_bytes_of(spelling, bytes);
}

void SpaceDecoder::append(std::string_view spelling, bool first, std::string& bytes) const {
  if (!first) bytes.push_back(' ');
  bytes.append(spelling);
}

}  // namespace refrain::text
