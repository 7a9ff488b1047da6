// add: kernel for AVX2. The same bits as the portable one.
#include "refrain/backend/features.h"
#include "refrain/ops/add/add.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops {
namespace {

REFRAIN_AVX2 void run(const backend::TileArgs& args, const ElementRange& range) {
  const float* a = args.arg<float>(0) + range.first;
  const float* b = args.arg<float>(1) + range.first;
  float* output = args.arg<float>(2) + range.first;
  size_t i = 0;
  for (; i + avx2::kLanes <= range.count; i += avx2::kLanes) {
    _mm256_storeu_ps(output + i, _mm256_add_ps(avx2::load8(a + i), avx2::load8(b + i)));
  }
  for (; i < range.count; ++i) output[i] = a[i] + b[i];
}

}  // namespace

std::span<const backend::Kernel> add_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "add_f32_avx2",
      .op = &add_schema,
      .numerics = "exact, f32, elementwise",
      .needs = backend::kFeatureAvx2,
      .unit_granule = avx2::kLanes,
  })};
  return kKernels;
}

}  // namespace refrain::ops
