// silu_mul: kernel for AVX2.
#include "refrain/backend/features.h"
#include "refrain/ops/silu_mul/silu_mul.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops {
namespace {

bool accepts(const backend::OpCall&) { return true; }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return elementwise_launch(call.constants_as<SiluMulConstants>());
}

REFRAIN_AVX2_INLINE __m256 silu_mul8(__m256 gate, __m256 up) {
  const __m256 minus = _mm256_xor_ps(gate, _mm256_set1_ps(-0.0f));
  const __m256 divisor = _mm256_add_ps(_mm256_set1_ps(1.0f), avx2::exp(minus));
  return _mm256_mul_ps(_mm256_div_ps(gate, divisor), up);
}

REFRAIN_AVX2 void run(const backend::TileArgs& args, const ElementRange& range) {
  for (size_t row = 0; row < range.rows; ++row) {
    const size_t at = range.first + row * range.stride;
    const float* gate = args.arg<float>(0) + at;
    const float* up = args.arg<float>(1) + at;
    float* output = args.arg<float>(2) + at;
    size_t i = 0;
    for (; i + avx2::kLanes <= range.count; i += avx2::kLanes) {
      _mm256_storeu_ps(output + i, silu_mul8(avx2::load8(gate + i), avx2::load8(up + i)));
    }
    const size_t rest = range.count - i;
    if (rest == 0) continue;
    const __m256 last = silu_mul8(avx2::load_first(gate + i, rest), avx2::load_first(up + i, rest));
    avx2::store_first(output + i, last, rest);
  }
}

}  // namespace

std::span<const backend::Kernel> silu_mul_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "silu_mul_f32_avx2",
      .op = &silu_mul_schema,
      .numerics = "exact, f32, elementwise, avx2 exp",
      .needs = backend::kFeatureAvx2,
      .accepts = accepts,
      .launch = launch,
      .entry = &kElementwiseEntry<run>,
      .regions = true,
      .unit_granule = avx2::kLanes,
  }};
  return kKernels;
}

}  // namespace refrain::ops
