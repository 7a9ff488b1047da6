#include "refrain/format/q8_0.h"

#include <cstring>

#include "refrain/format/floats.h"

namespace refrain::format {
namespace {

constexpr uint32_t kElements = 32, kBlockBytes = 34;

void decode(const WeightFormat&, const std::byte* const* parts, size_t blocks, float* values) {
  for (const std::byte* block = parts[0]; blocks > 0; --blocks, block += kBlockBytes) {
    const float scale = load<f16>(block, 0);
    for (size_t i = 0; i < kElements; ++i)
      *values++ = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

void separate(const std::byte* block, std::byte* codes, std::byte* scale) {
  std::memcpy(scale, block, 2);
  std::memcpy(codes, block + 2, kElements);
}

constexpr WeightFormat kFormat{.name = "q8_0",
                               .dtype = DType::f16,
                               .block_elements = kElements,
                               .parts = {{{DType::u8, kBlockBytes}}},
                               .bits = 8,
                               .decode = decode,
                               .separate = separate};

}  // namespace

const WeightFormat& q8_0() { return kFormat; }

}  // namespace refrain::format
