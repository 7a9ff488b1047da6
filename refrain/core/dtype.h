// Element types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace refrain {

enum class DType : uint8_t {
  f32,
  f16,
  bf16,
  f64,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  boolean,     ///< one byte, 0 or 1
  activation,  ///< whatever the plan's mode makes of activations; only in recordings, has no size
};

/// Bytes of one element; 0 for DType::activation.
constexpr size_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::u8:
    case DType::i8:
    case DType::boolean:
      return 1;
    case DType::f16:
    case DType::bf16:
    case DType::u16:
    case DType::i16:
      return 2;
    case DType::f32:
    case DType::u32:
    case DType::i32:
      return 4;
    case DType::f64:
    case DType::u64:
    case DType::i64:
      return 8;
    case DType::activation:
      return 0;
  }
  return 0;
}

constexpr std::string_view name(DType dtype) {
  constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "f64", "u8",  "i8",      "u16",
                                         "i16", "u32", "i32",  "u64", "i64", "boolean", "activation"};
  return kNames[static_cast<size_t>(dtype)];
}

/// A set of dtypes.
class DTypes {
 public:
  constexpr DTypes() = default;
  constexpr DTypes(std::initializer_list<DType> dtypes) {
    for (const DType dtype : dtypes) bits_ |= bit(dtype);
  }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool has(DType dtype) const { return (bits_ & bit(dtype)) != 0; }
  constexpr bool has_any(DTypes others) const { return (bits_ & others.bits_) != 0; }

 private:
  static constexpr uint32_t bit(DType dtype) { return uint32_t{1} << static_cast<uint32_t>(dtype); }
  uint32_t bits_ = 0;
};

/// The C++ types that `Buffer::span<T>` accepts for a dtype are in half.h (f16, bf16) and <cstdint>.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint16_t> {
  static constexpr DType value = DType::u16;
};
template <>
struct DTypeOf<uint32_t> {
  static constexpr DType value = DType::u32;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<uint64_t> {
  static constexpr DType value = DType::u64;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};

}  // namespace refrain
