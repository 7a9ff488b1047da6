// silu_mul: portable kernel.
#include <cmath>

#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {
namespace {

void run(const backend::TileArgs& args, const ElementRange& range) {
  const float* gate = args.arg<float>(0) + range.first;
  const float* up = args.arg<float>(1) + range.first;
  float* output = args.arg<float>(2) + range.first;
  for (size_t i = 0; i < range.count; ++i) {
    output[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  }
}

}  // namespace

std::span<const backend::Kernel> silu_mul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "silu_mul_f32_portable",
      .op = &silu_mul_schema,
      .numerics = "exact, f32, elementwise, exp of the C library",
  })};
  return kKernels;
}

}  // namespace refrain::ops
