// A value and its index as one integer, greater where the value is greater or, of equal ones, the index lower.
#pragma once

#include <cstdint>

namespace refrain::ops {

using OrderKey = unsigned long long;

/// NaNs come before all numbers, whatever their index; zeros of either sign are equal.
__device__ inline OrderKey order_key(float value, uint32_t id) {
  if (value != value) return UINT32_MAX - id;
  const uint32_t bits = value == 0 ? 0 : __float_as_uint(value);
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;  // never 0, which is for NaNs
  return OrderKey{ordered} << 32 | (UINT32_MAX - id);
}

__device__ inline uint32_t id_of(OrderKey key) { return UINT32_MAX - static_cast<uint32_t>(key); }

}  // namespace refrain::ops
