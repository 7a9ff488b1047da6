// silu_mul: kernel for AVX2.
#include "refrain/backend/features.h"
#include "refrain/ops/gated_avx2.h"
#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {
namespace {

struct Silu {
  REFRAIN_AVX2_INLINE static __m256 of(__m256 x) {
    const __m256 minus = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), avx2::exp(minus)));
  }
};

}  // namespace

std::span<const backend::Kernel> silu_mul_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<avx2::run_gated<Silu>>({
      .name = "silu_mul_f32_avx2",
      .op = &silu_mul_schema,
      .numerics = "exact, f32, elementwise, avx2 exp",
      .needs = backend::kFeatureAvx2,
      .unit_granule = avx2::kLanes,
  })};
  return kKernels;
}

}  // namespace refrain::ops
