#include "refrain/format/q4_0.h"

#include <cstring>

#include "refrain/format/floats.h"

namespace refrain::format {
namespace {

constexpr uint32_t kElements = 32, kHalf = kElements / 2, kBlockBytes = 18;

/// Code i of a block, 0 to 15: the lower halves of the bytes come first.
uint8_t code_at(const std::byte* block, size_t i) {
  const auto byte = std::to_integer<uint8_t>(block[2 + i % kHalf]);
  return i < kHalf ? byte & 15u : byte >> 4;
}

void decode(const WeightFormat&, const std::byte* const* parts, size_t blocks, float* values) {
  for (const std::byte* block = parts[0]; blocks > 0; --blocks, block += kBlockBytes) {
    const float scale = load<f16>(block, 0);
    for (size_t i = 0; i < kElements; ++i) *values++ = scale * static_cast<float>(code_at(block, i) - 8);
  }
}

void separate(const std::byte* block, std::byte* codes, std::byte* scale) {
  std::memcpy(scale, block, 2);
  for (size_t i = 0; i < kElements; i += 2) {
    // Less 8 in two's complement is the upper bit turned.
    *codes++ = std::byte(code_at(block, i) | code_at(block, i + 1) << 4) ^ std::byte{0x88};
  }
}

constexpr WeightFormat kFormat{.name = "q4_0",
                               .dtype = DType::f16,
                               .block_elements = kElements,
                               .parts = {{{DType::u8, kBlockBytes}}},
                               .bits = 4,
                               .decode = decode,
                               .separate = separate};

}  // namespace

const WeightFormat& q4_0() { return kFormat; }

}  // namespace refrain::format
