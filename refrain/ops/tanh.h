// The hyperbolic tangent by sums, products, quotients and FMAs alone: one text for all kernels, hence one numerics class.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "refrain/core/host_device.h"

namespace refrain::ops {

/// tanh(x): relative error below 6 * 2^-24; 1 at infinity, NaN for NaN, the sign of x. May be made vectors of, where it is
/// called in a loop by a function with target attributes.
///
/// With t = 2 |x| = n ln 2 + r, |r| <= ln 2 / 2, and p = e^r - 1 by its series: e^t - 1 = 2^n p + (2^n - 1), and
/// tanh = (e^t - 1) / (e^t - 1 + 2), in which nothing cancels. From t = 20 on it is 1. In units of 2^-24, p is wrong by 2.6 of
/// it (r by 0.9, r^2 and q by 0.4, the rest of the series is 0.3, the last sum 1). At n = 1, where that is most, p is at most
/// 1.5 of e^t - 1, whose sum is 1 more, in all 4.7; of that the quotient gets 0.83, with its sum and itself 2 more: 5.9.
[[gnu::always_inline]] REFRAIN_HD inline float tanh_by_fma(float x) {
  float t = 2 * std::fabs(x);
  t = t > 20.0f ? 20.0f : t;           // a NaN stays one
  constexpr float kRound = 0x1.8p23f;  // n + kRound has n in its low bits
  const float shifted = std::fma(t, 0x1.715476p+0f, kRound);
  const float n = shifted - kRound;
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
  const float r = std::fma(n, -0x1.7f7d1cp-20f, std::fma(n, -0x1.62e4p-1f, t));  // ln 2 in two parts
  float q = 1.0f / 5040.0f;
  q = std::fma(q, r, 1.0f / 720.0f);
  q = std::fma(q, r, 1.0f / 120.0f);
  q = std::fma(q, r, 1.0f / 24.0f);
  q = std::fma(q, r, 1.0f / 6.0f);
  q = std::fma(q, r, 0.5f);
  const float p = std::fma(r * r, q, r);
  const float e = std::fma(scale, p, scale - 1);  // e^t - 1
  return std::copysign(e / (e + 2), x);
}

}  // namespace refrain::ops
