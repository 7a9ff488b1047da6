#include "refrain/format/mlx_affine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "refrain/core/error.h"
#include "refrain/core/half.h"

namespace refrain::format {
namespace {

constexpr float kLeastScale = 1e-7f;
constexpr size_t kMaxGroupSize = 128;

float widen(float value) { return value; }
float widen(f16 value) { return value.to_float(); }
float widen(bf16 value) { return value.to_float(); }

template <class T>
T narrow(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return T::from_float(value);
  }
}

template <class T>
float load(std::span<const std::byte> bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return widen(value);
}

template <class T>
void store(std::span<std::byte> bytes, size_t index, float value) {
  const T rounded = narrow<T>(value);
  std::memcpy(bytes.data() + index * sizeof(T), &rounded, sizeof(T));
}

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
void pack(std::span<const float> group, Line line, uint32_t bits, uint32_t* words) {
  const float max_code = static_cast<float>((1u << bits) - 1);
  uint64_t pending = 0;
  uint32_t pending_bits = 0;
  for (const float w : group) {
    const float code = std::min(std::max(std::rint((w - line.bias) / line.scale), 0.0f), max_code);
    pending |= static_cast<uint64_t>(code) << pending_bits;
    pending_bits += bits;
    if (pending_bits >= 32) {
      *words++ = static_cast<uint32_t>(pending);
      pending >>= 32;
      pending_bits -= 32;
    }
  }
}

template <class T>
bool quantize(std::span<const std::byte> values, AffineParameters p, std::span<uint32_t> codes,
              std::span<std::byte> scales, std::span<std::byte> biases) {
  const float max_code = static_cast<float>((1u << p.bits) - 1);
  const size_t groups = values.size() / sizeof(T) / p.group_size;
  const size_t group_words = affine_words(p.group_size, p);
  std::array<float, kMaxGroupSize> buffer;
  const std::span<float> group(buffer.data(), p.group_size);
  bool finite = true;
  for (size_t g = 0; g < groups; ++g) {
    bool group_finite = true;
    for (size_t i = 0; i < group.size(); ++i) {
      group[i] = load<T>(values, g * p.group_size + i);
      group_finite = group_finite && std::isfinite(group[i]);
    }
    if (!group_finite) {  // a NaN has no code
      finite = false;
      std::ranges::fill(group, 0.0f);
    }
    const Line line = fit(group, max_code);
    store<T>(scales, g, line.scale);
    store<T>(biases, g, line.bias);
    pack(group, line, p.bits, codes.data() + g * group_words);
  }
  return finite;
}

template <class T>
void dequantize(std::span<const std::byte> codes, std::span<const std::byte> scales,
                std::span<const std::byte> biases, AffineParameters p, std::span<float> values) {
  const uint64_t mask = (uint64_t{1} << p.bits) - 1;
  const std::byte* next = codes.data();
  for (size_t g = 0; g < values.size() / p.group_size; ++g) {
    const float scale = load<T>(scales, g);
    const float bias = load<T>(biases, g);
    uint64_t pending = 0;
    uint32_t pending_bits = 0;
    for (float& w : values.subspan(g * p.group_size, p.group_size)) {
      if (pending_bits < p.bits) {
        uint32_t word;
        std::memcpy(&word, next, sizeof word);
        next += sizeof word;
        pending |= uint64_t{word} << pending_bits;
        pending_bits += 32;
      }
      const float code = static_cast<float>(pending & mask);
      pending >>= p.bits;
      pending_bits -= p.bits;
      w = scale * code + bias;
    }
  }
}

void check(const char* op, DType dtype, AffineParameters p, size_t elements, size_t words,
           size_t scales_bytes, size_t biases_bytes) {
  const auto expect = [&](bool good, const char* argument, const std::string& expected, auto got) {
    if (!good)
      throw InvalidArgument(fmt::format("[{}] {}: expected {}, got {}", op, argument, expected, got));
  };
  expect(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, "dtype", "f32, f16 or bf16",
         name(dtype));
  expect(is_legal(p), "parameters", "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
         fmt::format("{} in {}", p.bits, p.group_size));
  expect(elements % p.group_size == 0, "values", fmt::format("a multiple of {} elements", p.group_size),
         elements);
  const size_t pairs_bytes = elements / p.group_size * size_bytes(dtype);
  expect(words == affine_words(elements, p), "codes", fmt::format("{} words", affine_words(elements, p)),
         words);
  expect(scales_bytes == pairs_bytes, "scales", fmt::format("{} bytes", pairs_bytes), scales_bytes);
  expect(biases_bytes == pairs_bytes, "biases", fmt::format("{} bytes", pairs_bytes), biases_bytes);
}

}  // namespace

bool affine_quantize(DType dtype, std::span<const std::byte> values, AffineParameters parameters,
                     std::span<uint32_t> codes, std::span<std::byte> scales, std::span<std::byte> biases) {
  const size_t width = std::max<size_t>(size_bytes(dtype), 1);
  check("affine_quantize", dtype, parameters, values.size() / width, codes.size(), scales.size(),
        biases.size());
  if (dtype == DType::f16) return quantize<f16>(values, parameters, codes, scales, biases);
  if (dtype == DType::bf16) return quantize<bf16>(values, parameters, codes, scales, biases);
  return quantize<float>(values, parameters, codes, scales, biases);
}

void affine_dequantize(DType dtype, std::span<const std::byte> codes, std::span<const std::byte> scales,
                       std::span<const std::byte> biases, AffineParameters parameters,
                       std::span<float> values) {
  check("affine_dequantize", dtype, parameters, values.size(), codes.size() / sizeof(uint32_t), scales.size(),
        biases.size());
  if (dtype == DType::f16) return dequantize<f16>(codes, scales, biases, parameters, values);
  if (dtype == DType::bf16) return dequantize<bf16>(codes, scales, biases, parameters, values);
  return dequantize<float>(codes, scales, biases, parameters, values);
}

}  // namespace refrain::format
