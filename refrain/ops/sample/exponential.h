// The exponential of `sample`, for every kernel of it and compiled for each one's own instruction set.
#pragma once

#include <bit>
#include <cstdint>

#include "refrain/core/host_device.h"

#define REFRAIN_SAMPLE_INLINE __attribute__((always_inline)) inline

namespace refrain::ops::sampling {

/// e^x for x <= 0 within 2 units in the last place, 0 below -700 and for a NaN.
///
/// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its series up to r^13 / 13! (the rest is below r^14 / 14! <
/// 5e-18).
REFRAIN_HD REFRAIN_SAMPLE_INLINE double exp_of_negative(double x) {
  const double clamped = x > -700.0 ? x : -700.0;
  constexpr double kRounder = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const double shifted = clamped * 0x1.71547652b82fep+0 + kRounder;
  const double n = shifted - kRounder;
  // ln 2 in two parts; the first has 32 bits, so that n times it is exact.
  double r = clamped - n * 0x1.62e42feep-1;
  r = r - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  // n is in the low bits of `shifted`; the shift leaves n in the exponent's place.
  const double result =
      std::bit_cast<double>(std::bit_cast<uint64_t>(p) + (std::bit_cast<uint64_t>(shifted) << 52));
  return x >= -700.0 ? result : 0.0;
}

}  // namespace refrain::ops::sampling
