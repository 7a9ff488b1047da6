// What gated activations share under AVX2: the walk over elements. For files *_cpu_avx2.cpp only.
#pragma once

#include "refrain/ops/elementwise.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops::avx2 {

/// output = Activation::of(gate) * up; arguments in this order.
template <class Activation>
REFRAIN_AVX2 void run_gated(const backend::TileArgs& args, const ElementRange& range) {
  const float* gate = args.arg<float>(0) + range.first;
  const float* up = args.arg<float>(1) + range.first;
  float* output = args.arg<float>(2) + range.first;
  size_t i = 0;
  for (; i + kLanes <= range.count; i += kLanes) {
    _mm256_storeu_ps(output + i, _mm256_mul_ps(Activation::of(load8(gate + i)), load8(up + i)));
  }
  const size_t rest = range.count - i;
  if (rest == 0) return;
  const __m256 last = Activation::of(load_first(gate + i, rest));
  store_first(output + i, _mm256_mul_ps(last, load_first(up + i, rest)), rest);
}

}  // namespace refrain::ops::avx2
