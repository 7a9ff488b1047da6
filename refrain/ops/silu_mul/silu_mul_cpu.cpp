// silu_mul: portable kernel.
#include <cmath>

#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {
namespace {

bool accepts(const device::OpCall&) { return true; }

device::Launch launch(const device::OpCall& call, const device::DeviceInfo&) {
  return elementwise_launch(call.constants_as<SiluMulConstants>());
}

void run(const device::TileArgs& args, const ElementRange& range) {
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

std::span<const device::Kernel> silu_mul_cpu_kernels() {
  static constexpr device::Kernel kKernels[] = {{
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
