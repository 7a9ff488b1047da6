#include "refrain/format/mlx_affine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>

#include "refrain/core/error.h"
#include "refrain/format/codes.h"
#include "refrain/format/floats.h"

namespace refrain::format {
namespace {

constexpr float kLeastScale = 1e-7f;

struct Line {
  float scale;
  float bias;
};

/// Scale and bias of a group before they are rounded.
Line fit(std::span<const float> group, float max_code) {
  float least = std::numeric_limits<float>::infinity();
  float most = -std::numeric_limits<float>::infinity();
  for (const float w : group) {
    least = std::min(least, w);
    most = std::max(most, w);
  }
  const bool from_below = std::abs(least) > std::abs(most);
  float scale = std::max((most - least) / max_code, kLeastScale);
  if (!from_below) scale = -scale;
  const float edge = from_below ? least : most;
  const float edge_code = std::rint(edge / scale);
  if (edge_code == 0) return {scale, 0};
  return {edge / edge_code, edge};
}

/// The codes of one group, a whole number of words.
void pack(std::span<const float> group, Line line, uint32_t bits, std::byte* words) {
  const float max_code = static_cast<float>((1u << bits) - 1);
  uint64_t pending = 0;
  uint32_t pending_bits = 0;
  for (const float w : group) {
    const float code = std::min(std::max(std::rint((w - line.bias) / line.scale), 0.0f), max_code);
    pending |= static_cast<uint64_t>(code) << pending_bits;
    pending_bits += bits;
    if (pending_bits >= 32) {
      std::memcpy(words, &pending, sizeof(uint32_t));
      words += sizeof(uint32_t);
      pending >>= 32;
      pending_bits -= 32;
    }
  }
}

template <class T>
bool encode(const WeightFormat& format, const float* values, size_t blocks, std::byte* const* parts) {
  constexpr std::array<float, kMaxGroupSize> kZeros{};
  const float max_code = static_cast<float>((1u << format.bits) - 1);
  bool finite = true;
  for (size_t g = 0; g < blocks; ++g) {
    std::span<const float> group(values + g * format.block_elements, format.block_elements);
    if (!std::ranges::all_of(group, [](float w) { return std::isfinite(w); })) {  // a NaN has no code
      finite = false;
      group = std::span(kZeros).first(format.block_elements);
    }
    const Line line = fit(group, max_code);
    store<T>(parts[1], g, line.scale);
    store<T>(parts[2], g, line.bias);
    pack(group, line, format.bits, parts[0] + g * format.parts[0].block_bytes());
  }
  return finite;
}

void decode(const WeightFormat& format, const std::byte* const* parts, size_t blocks, float* values) {
  decode_groups(format, {parts[0], parts[1], parts[2]}, blocks, values);
}

constexpr std::array<uint32_t, 6> kBits = {2, 3, 4, 5, 6, 8};
constexpr std::array<uint32_t, 3> kGroupSizes = {32, 64, 128};
constexpr std::array<DType, 3> kDTypes = {DType::f32, DType::f16, DType::bf16};
constexpr size_t kCount = kBits.size() * kGroupSizes.size() * kDTypes.size();

/// Calls each(index, bits, group_size, dtype) in the order of the tables below.
template <class Each>
constexpr void for_all(Each each) {
  size_t index = 0;
  for (const uint32_t bits : kBits) {
    for (const uint32_t group_size : kGroupSizes) {
      for (const DType dtype : kDTypes) each(index++, bits, group_size, dtype);
    }
  }
}

constexpr auto kNames = [] {
  std::array<std::array<char, 24>, kCount> names{};
  for_all([&](size_t i, uint32_t bits, uint32_t group_size, DType dtype) {
    char* to = std::ranges::copy(std::string_view("mlx_affine"), names[i].data()).out;
    *to++ = static_cast<char>('0' + bits);
    const std::string_view group = group_size == 32 ? "_g32_" : group_size == 64 ? "_g64_" : "_g128_";
    std::ranges::copy(name(dtype), std::ranges::copy(group, to).out);
  });
  return names;
}();

constexpr auto kFormats = [] {
  std::array<WeightFormat, kCount> formats{};
  for_all([&](size_t i, uint32_t bits, uint32_t group_size, DType dtype) {
    formats[i] = {.name = kNames[i].data(),
                  .dtype = dtype,
                  .block_elements = group_size,
                  .parts = {{{DType::u32, group_size * bits / 32}, {dtype, 1}, {dtype, 1}}},
                  .bits = bits,
                  .has_biases = true,
                  .decode = decode,
                  .encode = dtype == DType::f32   ? encode<float>
                            : dtype == DType::f16 ? encode<f16>
                                                  : encode<bf16>};
  });
  return formats;
}();

}  // namespace

const WeightFormat& mlx_affine(AffineParameters p, DType dtype) {
  const WeightFormat* found = nullptr;
  for_all([&](size_t i, uint32_t bits, uint32_t group_size, DType d) {
    if (p == AffineParameters{bits, group_size} && dtype == d) found = &kFormats[i];
  });
  if (found == nullptr) {
    throw InvalidArgument(
        fmt::format("[mlx_affine] expected 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128 of f32, f16 or "
                    "bf16, got {} in {} of {}",
                    p.bits, p.group_size, name(dtype)));
  }
  return *found;
}

}  // namespace refrain::format
