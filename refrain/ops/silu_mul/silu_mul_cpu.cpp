// silu_mul: portable kernel.
#include <cmath>

#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {
namespace {

bool accepts(const device::OpCall&) { return true; }

device::Launch launch(const device::OpCall& call, const device::DeviceInfo&) {
  return elementwise_launch(call.constants_as<SiluMulConstants>());
}

void tiles(const device::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<SiluMulConstants>();
  for (uint32_t tile = begin; tile < end; ++tile) {
    const ElementRange range = element_range(c, args.live_rows, tile);
    const float* gate = args.arg<float>(0) + range.first;
    const float* up = args.arg<float>(1) + range.first;
    float* output = args.arg<float>(2) + range.first;
    for (size_t i = 0; i < range.count; ++i) {
      output[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
  }
}

constexpr device::TileKernel kEntry{nullptr, nullptr, tiles};

}  // namespace

std::span<const device::Kernel> silu_mul_cpu_kernels() {
  static constexpr device::Kernel kKernels[] = {{
      .name = "silu_mul_f32_portable",
      .op = &silu_mul_schema,
      .numerics = "exact, f32, elementwise, exp of the C library",
      .accepts = accepts,
      .launch = launch,
      .entry = &kEntry,
  }};
  return kKernels;
}

}  // namespace refrain::ops
