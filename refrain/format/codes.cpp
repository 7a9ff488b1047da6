#include "refrain/format/codes.h"

#include "refrain/format/floats.h"

namespace refrain::format {
namespace {

template <uint32_t Bits, class Scale, bool HasBiases>
void decode(const CodedGroups& from, uint32_t group_elements, size_t groups, float* values) {
  constexpr size_t kTogether = 8;  // these codes end with a byte
  const std::byte* codes = from.codes;
  for (size_t group = 0; group < groups; ++group) {
    const float scale = load<Scale>(from.scales, group);
    const float bias = HasBiases ? load<Scale>(from.biases, group) : 0;
    for (size_t k = 0; k < group_elements; k += kTogether, codes += Bits, values += kTogether) {
      uint64_t word = 0;
      std::memcpy(&word, codes, Bits);
      for (size_t i = 0; i < kTogether; ++i) {
        const auto code = static_cast<uint32_t>(word >> (i * Bits)) & ((1u << Bits) - 1);
        if constexpr (HasBiases) {
          values[i] = scale * static_cast<float>(code) + bias;
        } else {
          values[i] = scale * static_cast<float>(static_cast<int32_t>(code << (32 - Bits)) >> (32 - Bits));
        }
      }
    }
  }
}

struct Decoder {
  template <uint32_t Bits, class Scale, bool HasBiases>
  auto operator()() const {
    return &decode<Bits, Scale, HasBiases>;
  }
};

}  // namespace

void decode_groups(const WeightFormat& format, const CodedGroups& from, size_t groups, float* values) {
  with_codes(format, Decoder())(from, format.block_elements, groups, values);
}

}  // namespace refrain::format
