// Arrays, random values and packed weights for tests of ops. Included by testing.h. Only for tests and
// benchmarks.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "refrain/backend/op.h"
#include "refrain/core/half.h"
#include "refrain/ops/layouts.h"

namespace refrain::ops::harness {

/// Elements at an address aligned to 64, with nothing after the last one, so that AddressSanitizer sees reads
/// past it.
template <class T>
class Array {
 public:
  explicit Array(size_t size, T fill = T{}) : size_(size) {
    data_ = static_cast<T*>(::operator new(std::max<size_t>(size, 1) * sizeof(T), kAlignment));
    std::fill_n(data_, size, fill);
  }
  Array(const Array& other) : Array(other.size_) { std::copy_n(other.data_, size_, data_); }
  Array(Array&& other) noexcept
      : size_(std::exchange(other.size_, 0)), data_(std::exchange(other.data_, nullptr)) {}
  Array& operator=(Array other) noexcept {
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Array() { ::operator delete(data_, kAlignment); }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t index) const { return data_[index]; }
  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }
  std::span<T> span() const { return {data_, size_}; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  size_t size_ = 0;
  T* data_ = nullptr;
};

/// True when both hold the same bytes (so NaNs and signs of zeros count).
template <class T>
bool same_bits(const Array<T>& a, const Array<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint32_t next() {  // SplitMix64, upper half
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
  }
  /// Uniform in [low, high).
  float uniform(float low = -1, float high = 1) {
    return low + (high - low) * static_cast<float>(next() >> 8) * 0x1p-24f;
  }
  uint32_t below(uint32_t limit) { return next() % limit; }
  void fill(const Array<float>& values, float low = -1, float high = 1) {
    for (float& value : values) value = uniform(low, high);
  }

 private:
  uint64_t state_;
};

/// A weight packed into a layout, and what it means.
struct PackedWeight {
  backend::WeightInfo info;
  const backend::WeightLayout* layout = nullptr;
  Array<std::byte> bytes{0};
  Array<float> values{0};  ///< logical, by the layout's unpack
};

inline PackedWeight pack(const TensorSource& source, const backend::WeightLayout& layout) {
  PackedWeight weight;
  weight.info = {source.format, source.dtype, source.shape, source.bits, source.group_size};
  weight.layout = &layout;
  weight.bytes = Array<std::byte>(layout.packed_bytes(weight.info));
  pack_whole(layout, source, weight.info, weight.bytes.span());
  weight.values = Array<float>(static_cast<size_t>(source.shape.elements()));
  layout.unpack(weight.info, weight.bytes.span(), weight.values.span());
  return weight;
}

/// `values` rounded to `dtype` (f32, f16, bf16), as bytes.
inline std::vector<std::byte> encode(DType dtype, std::span<const float> values) {
  const size_t size = size_bytes(dtype);
  std::vector<std::byte> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    if (dtype == DType::f16) bits = f16::from_float(values[i]).bits;
    if (dtype == DType::bf16) bits = bf16::from_float(values[i]).bits;
    std::memcpy(bytes.data() + i * size, &bits, size);  // little-endian
  }
  return bytes;
}

/// A plain weight of these values, rounded to `dtype`.
inline PackedWeight plain_weight(DType dtype, const Shape& shape, std::span<const float> values,
                                 const backend::WeightLayout& layout) {
  const std::vector<std::byte> bytes = encode(dtype, values);
  TensorSource source{"weight", WeightFormat::plain, dtype, shape, 0, 0, {{dtype, shape, bytes}}, nullptr};
  return pack(source, layout);
}

/// A plain weight of uniform random values in [-1, 1).
inline PackedWeight random_plain_weight(DType dtype, const Shape& shape, const backend::WeightLayout& layout,
                                        Random& random) {
  const Array<float> values(static_cast<size_t>(shape.elements()));
  random.fill(values);
  return plain_weight(dtype, shape, values.span(), layout);
}

/// An MLX affine weight [n, k] with random codes, scales of either sign and biases, laid out as
/// `mlx_affine_rows`.
inline PackedWeight random_affine_weight(DType dtype, int64_t n, int64_t k, uint32_t bits,
                                         uint32_t group_size, Random& random) {
  std::vector<uint32_t> codes(static_cast<size_t>(n * k) * bits / 32);
  for (uint32_t& word : codes) word = random.next();
  const size_t groups = static_cast<size_t>(n * k / group_size);
  std::vector<float> scales(groups), biases(groups);
  const float largest = 2.0f / static_cast<float>(1u << bits);
  for (size_t i = 0; i < groups; ++i) {
    scales[i] = random.uniform(-largest, largest);
    biases[i] = -scales[i] * random.uniform(0.25f, 0.75f) * static_cast<float>(1u << bits);
  }
  const std::vector<std::byte> scale_bytes = encode(dtype, scales), bias_bytes = encode(dtype, biases);
  const Shape group_shape{n, k / group_size};
  TensorSource source{"weight", WeightFormat::mlx_affine, dtype, Shape{n, k}, bits, group_size, {}, nullptr};
  source.segments.push_back({DType::u32, Shape{n, k * bits / 32}, std::as_bytes(std::span(codes))});
  source.segments.push_back({dtype, group_shape, scale_bytes});
  source.segments.push_back({dtype, group_shape, bias_bytes});
  return pack(source, mlx_affine_rows());
}

}  // namespace refrain::ops::harness
