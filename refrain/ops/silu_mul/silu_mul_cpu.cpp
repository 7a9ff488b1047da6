// silu_mul: portable kernel.
#include <cmath>

#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {
namespace {

bool accepts(const backend::OpCall&) { return true; }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return elementwise_launch(call.constants_as<SiluMulConstants>());
}

void run(const backend::TileArgs& args, const ElementRange& range) {
  for (size_t row = 0; row < range.rows; ++row) {
    const size_t at = range.first + row * range.stride;
    const float* gate = args.arg<float>(0) + at;
    const float* up = args.arg<float>(1) + at;
    float* output = args.arg<float>(2) + at;
    for (size_t i = 0; i < range.count; ++i) {
      output[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
  }
}

}  // namespace

std::span<const backend::Kernel> silu_mul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "silu_mul_f32_portable",
      .op = &silu_mul_schema,
      .numerics = "exact, f32, elementwise, exp of the C library",
      .accepts = accepts,
      .launch = launch,
      .entry = &kElementwiseEntry<run>,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
