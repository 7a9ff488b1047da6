// softcap: kernel for AVX2: eight elements at a time, which the compiler makes vectors of.
#include "refrain/backend/features.h"
#include "refrain/ops/simd_avx2.h"
#include "refrain/ops/softcap/softcap.h"
#include "refrain/ops/tanh.h"

namespace refrain::ops {
namespace {

REFRAIN_AVX2 void run(const backend::TileArgs& args, const ElementRange& range) {
  const float cap = args.constants_as<SoftcapConstants>().cap;
  const float* input = args.arg<float>(0) + range.first;
  float* output = args.arg<float>(1) + range.first;
  size_t i = 0;
  for (; i + avx2::kLanes <= range.count; i += avx2::kLanes) {
    float values[avx2::kLanes];
    for (size_t k = 0; k < avx2::kLanes; ++k) values[k] = cap * tanh_by_fma(input[i + k] / cap);
    std::memcpy(output + i, values, sizeof(values));
  }
  for (; i < range.count; ++i) output[i] = cap * tanh_by_fma(input[i] / cap);
}

}  // namespace

std::span<const backend::Kernel> softcap_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "softcap_f32_avx2",
      .op = &softcap_schema,
      .numerics = "exact, f32, elementwise, tanh by FMAs",
      .needs = backend::kFeatureAvx2,
      .unit_granule = avx2::kLanes,
  })};
  return kKernels;
}

}  // namespace refrain::ops
