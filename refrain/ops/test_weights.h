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
#include "refrain/format/encoded.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/plain.h"
#include "refrain/format/q4_0.h"
#include "refrain/format/q8_0.h"
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
  Array<float> values{0};  ///< logical, by the format's decode
};

inline PackedWeight pack(const TensorSource& source, const backend::WeightLayout& layout) {
  PackedWeight weight;
  weight.info = {source.format, source.shape};
  weight.layout = &layout;
  weight.bytes = Array<std::byte>(layout.packed_bytes(weight.info), std::byte{0xA5});
  pack_whole(layout, source, weight.info, weight.bytes.span());
  weight.values = Array<float>(static_cast<size_t>(source.shape.elements()));
  std::ranges::copy(format::decode(source), weight.values.begin());
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
  return pack(format::plain_tensor("weight", dtype, shape, bytes), layout);
}

/// A plain weight of uniform random values in [-1, 1).
inline PackedWeight random_plain_weight(DType dtype, const Shape& shape, const backend::WeightLayout& layout,
                                        Random& random) {
  const Array<float> values(static_cast<size_t>(shape.elements()));
  random.fill(values);
  return plain_weight(dtype, shape, values.span(), layout);
}

/// Random bytes for codes, scales of either sign and biases, so that values are about 1.
inline format::EncodedTensor random_tensor(const WeightFormat& format, const Shape& shape, Random& random) {
  format::EncodedTensor tensor{&format, shape, {}};
  const size_t blocks = static_cast<size_t>(shape.elements()) / format.block_elements;
  for (size_t i = 0; i < format.part_count(); ++i) {
    std::vector<std::byte>& part = tensor.parts.emplace_back(blocks * format.parts[i].block_bytes());
    for (std::byte& byte : part) byte = static_cast<std::byte>(random.next());
  }
  const float codes = static_cast<float>(1u << format.bits);
  for (size_t block = 0; block < blocks; ++block) {
    const float scale = random.uniform(-2 / codes, 2 / codes);
    const float bias = -scale * random.uniform(0.25f, 0.75f) * codes;
    const auto put = [&](size_t part, float value) {
      std::ranges::copy(
          encode(format.dtype, {&value, 1}),
          tensor.parts[part].begin() + static_cast<ptrdiff_t>(block * format.parts[part].block_bytes()));
    };
    if (format.bits == 0) {
      put(0, random.uniform());
    } else {
      put(format.has_biases ? 1 : 0, scale);
      if (format.has_biases) put(2, bias);
    }
  }
  return tensor;
}

/// A random weight [n, k] in the layout of its format.
inline PackedWeight random_weight(const WeightFormat& format, int64_t n, int64_t k, Random& random) {
  return pack(random_tensor(format, {n, k}, random).source("weight"), matrix_layout(format));
}

/// Every format of matrices that kernels take.
inline std::vector<const WeightFormat*> matrix_formats() {
  std::vector<const WeightFormat*> list = {&format::q8_0(), &format::q4_0()};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    list.push_back(&format::plain(dtype));
    for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
      for (const uint32_t group_size : {32u, 64u, 128u})
        list.push_back(&format::mlx_affine({bits, group_size}, dtype));
    }
  }
  return list;
}

}  // namespace refrain::ops::harness
