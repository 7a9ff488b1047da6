// The three floating-point types of weights at any address, as f32.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "refrain/core/half.h"

namespace refrain::format {

/// Element `index` of an array.
template <class T>
float load(const std::byte* from, size_t index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return value.to_float();
  }
}

/// Rounds `value` to element `index`.
template <class T>
void store(std::byte* to, size_t index, float value) {
  T rounded;
  if constexpr (std::is_same_v<T, float>) {
    rounded = value;
  } else {
    rounded = T::from_float(value);
  }
  std::memcpy(to + index * sizeof(T), &rounded, sizeof(T));
}

}  // namespace refrain::format
