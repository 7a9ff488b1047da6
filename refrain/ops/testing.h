// What the tests of ops share: aligned arrays, random values, packed weights, and Call, which runs a kernel
// or the reference on plain memory without a device: it walks tiles in a given split and order.
// Only for tests and benchmarks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/device/features.h"
#include "refrain/device/kernel.h"
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
  device::WeightInfo info;
  const device::WeightLayout* layout = nullptr;
  Array<std::byte> bytes{0};
  Array<float> values{0};  ///< logical, by the layout's unpack
};

inline PackedWeight pack(const TensorSource& source, const device::WeightLayout& layout) {
  PackedWeight weight;
  weight.info = {source.format, source.dtype, source.shape, source.bits, source.group_size};
  weight.layout = &layout;
  weight.bytes = Array<std::byte>(layout.packed_bytes(weight.info));
  layout.pack(source, weight.info, weight.bytes.span());
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
                                 const device::WeightLayout& layout) {
  const std::vector<std::byte> bytes = encode(dtype, values);
  TensorSource source{"weight", WeightFormat::plain, dtype, shape, 0, 0, {{dtype, shape, bytes}}, nullptr};
  return pack(source, layout);
}

/// A plain weight of uniform random values in [-1, 1).
inline PackedWeight random_plain_weight(DType dtype, const Shape& shape, const device::WeightLayout& layout,
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

/// What the machine offers, in bits of device/features.h.
inline uint64_t machine_features() {
#if defined(__x86_64__)
  // Every processor with AVX2 has F16C, which Clang 16 cannot ask for.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return device::kFeatureAvx2;
#endif
  return 0;
}

/// A device that takes `workers` of this machine; for Kernel::launch.
inline device::DeviceInfo machine(uint32_t workers = 2) {
  device::DeviceInfo info;
  info.backend = "cpu";
  info.features = machine_features();
  info.compute_units = workers;
  info.host_memory = true;
  return info;
}

/// Kernels of a table that this machine can run.
inline void append_runnable(std::vector<const device::Kernel*>& list,
                            std::span<const device::Kernel> kernels) {
  for (const device::Kernel& kernel : kernels) {
    if ((kernel.needs & ~machine_features()) == 0) list.push_back(&kernel);
  }
}

/// How the tiles of a command are walked: in pieces of `piece` tiles, backwards or not, dealt to workers in
/// turn.
struct Walk {
  uint32_t piece = UINT32_MAX;
  bool backwards = false;
  uint32_t workers = 1;
};
inline constexpr std::array<Walk, 4> kWalks{{{}, {1, false, 1}, {1, true, 3}, {3, true, 2}}};

/// One call of an op on plain memory. Arguments are added in the order of the schema; weights and arrays
/// outlive it.
class Call {
 public:
  explicit Call(const device::OpSchema& schema) : schema_(&schema) {}

  Call& tensor(DType dtype, const Shape& shape, void* data) {
    infos_.push_back({true, dtype, shape, nullptr, nullptr});
    args_.push_back(data);
    return *this;
  }
  template <class T>
  Call& tensor(const Shape& shape, const Array<T>& array) {
    EXPECT_EQ(static_cast<size_t>(shape.elements()), array.size());
    return tensor(DTypeOf<T>::value, shape, array.data());
  }
  Call& weight(const PackedWeight& weight) {
    infos_.push_back({true, weight.info.dtype, weight.info.shape, &weight.info, weight.layout});
    args_.push_back(weight.bytes.data());
    return *this;
  }
  Call& none() {
    infos_.emplace_back();
    args_.push_back(nullptr);
    return *this;
  }
  template <class Constants>
  Call& constants(const Constants& value) {
    constants_ = Array<std::byte>(sizeof(value));
    std::memcpy(constants_.data(), &value, sizeof(value));
    return *this;
  }

  /// For tests of the check that change one thing of a good call.
  device::ArgumentInfo& info(size_t index) { return infos_[index]; }

  device::OpCall op_call() const { return {schema_, infos_, constants_.span()}; }
  void check() const { schema_->check(op_call()); }
  /// What the check throws; empty when it passes.
  std::string check_error() const {
    try {
      check();
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return {};
  }

  bool accepted_by(const device::Kernel& kernel) const { return kernel.accepts(op_call()); }

  void reference(uint32_t live_rows) const { schema_->reference(tile_args(live_rows, nullptr)); }

  /// Checks the call, then runs the kernel as a backend does: the live count is clamped to the capacity, each
  /// worker has scratch of its own, filled with rubbish, and runs the prologue once.
  void run(const device::Kernel& kernel, uint32_t live_rows, const Walk& walk = {}) const {
    check();
    ASSERT_EQ(kernel.op, schema_);
    ASSERT_TRUE(accepted_by(kernel)) << kernel.name;
    const device::Launch launch = kernel.launch(op_call(), machine(walk.workers));
    ASSERT_GT(launch.rows_per_block, 0u);
    ASSERT_GT(launch.tiles_per_block, 0u);
    const uint32_t live = std::min(live_rows, launch.rows);
    const uint32_t tiles = ceil_div(live, launch.rows_per_block) * launch.tiles_per_block;
    const auto& entry = *static_cast<const device::TileKernel*>(kernel.entry);
    std::vector<Array<std::byte>> scratch;
    for (uint32_t i = 0; i < walk.workers; ++i) scratch.emplace_back(launch.scratch_bytes, std::byte{0xA5});
    if (entry.prefetch != nullptr) entry.prefetch(tile_args(live, nullptr));
    for (uint32_t i = 0; i < walk.workers; ++i) {
      if (entry.prologue != nullptr) entry.prologue(tile_args(live, scratch[i].data()));
    }
    const uint32_t piece = std::min(walk.piece, std::max(tiles, 1u));
    const uint32_t pieces = ceil_div(tiles, piece);
    for (uint32_t i = 0; i < pieces; ++i) {
      const uint32_t begin = (walk.backwards ? pieces - 1 - i : i) * piece;
      entry.tiles(tile_args(live, scratch[i % walk.workers].data()), begin, std::min(begin + piece, tiles));
    }
  }

 private:
  device::TileArgs tile_args(uint32_t live_rows, std::byte* scratch) const {
    return {args_.data(), constants_.data(), scratch, live_rows};
  }

  const device::OpSchema* schema_;
  std::vector<device::ArgumentInfo> infos_;
  std::vector<void*> args_;
  Array<std::byte> constants_{0};
};

/// Half the distance between 1 and the next float: the greatest relative error of one rounding.
inline constexpr double kUnitRoundoff = 0x1p-24;

/// The greatest |a - b| beyond `tolerance(index)`; 0 or less when all are within.
template <class Tolerance>
double excess(const Array<float>& a, const Array<float>& b, Tolerance tolerance) {
  double worst = -1;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return INFINITY;
    if (std::isnan(a[i]) || a[i] == b[i]) continue;
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])) - tolerance(i));
  }
  return worst;
}

}  // namespace refrain::ops::harness
