// Fuzz target for libFuzzer: the reader of safetensors files on arbitrary bytes, and the index as JSON.
// A finding is a crash, a sanitizer's report, an exception other than FileError, or a span outside the input.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "refrain/core/error.h"
#include "refrain/format/json.h"
#include "refrain/format/safetensors.h"

namespace {

using namespace refrain;
using namespace refrain::format;

void require(bool condition) {
  if (!condition) std::abort();
}

void read(std::span<const std::byte> bytes) {
  try {
    const SafetensorsFile file = SafetensorsFile::parse(bytes, "input");
    size_t covered = 0;
    unsigned sum = 0;
    for (const SafetensorsEntry& entry : file.tensors()) {
      require(file.find(entry.name) == &entry);
      for (const std::byte byte : entry.bytes) sum += std::to_integer<unsigned>(byte);
      covered += entry.bytes.size();
      if (entry.dtype) {
        const TensorSegment segment = file.segment(entry);
        require(static_cast<size_t>(segment.shape.elements()) * size_bytes(segment.dtype) ==
                segment.bytes.size());
      }
    }
    require(covered <= bytes.size() && sum <= covered * 255);
  } catch (const FileError& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
  }
}

void walk(const Json& value) {
  if (value.is_object()) {
    for (const std::string& key : value.keys()) walk(value.at(key));
  } else if (value.is_array()) {
    for (const Json& item : value.items()) walk(item);
  } else {
    require(!value.describe().empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span input(reinterpret_cast<const std::byte*>(data), size);
  read(input);
  // The same bytes as header and data with a length that fits, so that mutations reach behind the first
  // check.
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t brace = text.find_last_of('}');
  if (brace != text.npos) {
    const uint64_t length = brace + 1;
    std::string framed(reinterpret_cast<const char*>(&length), sizeof length);
    framed += text;
    read(std::as_bytes(std::span(framed)));
  }
  try {
    walk(Json::parse(text, "input"));
  } catch (const FileError& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
  }
  return 0;
}
