// gelu_mul: portable kernel.
#include <cmath>

#include "refrain/ops/gelu_mul/gelu_mul.h"

namespace refrain::ops {
namespace {

constexpr auto kLinear = static_cast<float>(kGeluLinear), kCubic = static_cast<float>(kGeluCubic);

void run(const backend::TileArgs& args, const ElementRange& range) {
  const float* gate = args.arg<float>(0) + range.first;
  const float* up = args.arg<float>(1) + range.first;
  float* output = args.arg<float>(2) + range.first;
  for (size_t i = 0; i < range.count; ++i) {
    const float x = gate[i];
    output[i] = x / (1 + std::exp(-x * (kLinear + kCubic * x * x))) * up[i];
  }
}

}  // namespace

std::span<const backend::Kernel> gelu_mul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "gelu_mul_f32_portable",
      .op = &gelu_mul_schema,
      .numerics = "exact, f32, elementwise, exp of the C library",
  })};
  return kKernels;
}

}  // namespace refrain::ops
