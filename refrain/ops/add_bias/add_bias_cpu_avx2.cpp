// add_bias: kernel for AVX2. The same bits as the portable one.
#include "refrain/backend/features.h"
#include "refrain/ops/add_bias/add_bias.h"
#include "refrain/ops/simd_avx2.h"

namespace refrain::ops {
namespace {

REFRAIN_AVX2 void add_part(const float* input, const float* bias, float* output, size_t count) {
  size_t i = 0;
  for (; i + avx2::kLanes <= count; i += avx2::kLanes) {
    _mm256_storeu_ps(output + i, _mm256_add_ps(avx2::load8(input + i), avx2::load8(bias + i)));
  }
  for (; i < count; ++i) output[i] = input[i] + bias[i];
}

void run(const backend::TileArgs& args, const ElementRange& range) {
  each_row_part(args.constants_as<AddBiasConstants>().columns, range,
                [&](size_t first, size_t column, size_t count) {
                  add_part(args.arg<float>(0) + first, args.arg<const float>(1) + column,
                           args.arg<float>(2) + first, count);
                });
}

}  // namespace

std::span<const backend::Kernel> add_bias_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "add_bias_f32_avx2",
      .op = &add_bias_schema,
      .numerics = "exact, f32, elementwise",
      .needs = backend::kFeatureAvx2,
      .unit_granule = avx2::kLanes,
  })};
  return kKernels;
}

}  // namespace refrain::ops
