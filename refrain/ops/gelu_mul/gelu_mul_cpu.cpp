// gelu_mul: portable kernel.
#include <cmath>

#include "refrain/ops/gelu_mul/gelu_mul.h"

namespace refrain::ops {
namespace {

constexpr auto kLinear = static_cast<float>(kGeluLinear), kCubic = static_cast<float>(kGeluCubic);

bool accepts(const backend::OpCall&) { return true; }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return elementwise_launch(call.constants_as<GeluMulConstants>());
}

void run(const backend::TileArgs& args, const ElementRange& range) {
  for (size_t row = 0; row < range.rows; ++row) {
    const size_t at = range.first + row * range.stride;
    const float* gate = args.arg<float>(0) + at;
    const float* up = args.arg<float>(1) + at;
    float* output = args.arg<float>(2) + at;
    for (size_t i = 0; i < range.count; ++i) {
      const float x = gate[i];
      output[i] = x / (1 + std::exp(-x * (kLinear + kCubic * x * x))) * up[i];
    }
  }
}

}  // namespace

std::span<const backend::Kernel> gelu_mul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "gelu_mul_f32_portable",
      .op = &gelu_mul_schema,
      .numerics = "exact, f32, elementwise, exp of the C library",
      .accepts = accepts,
      .launch = launch,
      .entry = &kElementwiseEntry<run>,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
