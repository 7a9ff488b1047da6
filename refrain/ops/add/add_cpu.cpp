// add: portable kernel.
#include "refrain/ops/add/add.h"

namespace refrain::ops {
namespace {

bool accepts(const device::OpCall&) { return true; }

device::Launch launch(const device::OpCall& call, const device::DeviceInfo&) {
  return elementwise_launch(call.constants_as<AddConstants>());
}

void run(const device::TileArgs& args, const ElementRange& range) {
  for (size_t row = 0; row < range.rows; ++row) {
    const size_t at = range.first + row * range.stride;
    const float* a = args.arg<float>(0) + at;
    const float* b = args.arg<float>(1) + at;
    float* output = args.arg<float>(2) + at;
    for (size_t i = 0; i < range.count; ++i) output[i] = a[i] + b[i];
  }
}

}  // namespace

std::span<const device::Kernel> add_cpu_kernels() {
  static constexpr device::Kernel kKernels[] = {{
      .name = "add_f32_portable",
      .op = &add_schema,
      .numerics = "exact, f32, elementwise",
      .accepts = accepts,
      .launch = launch,
      .entry = &kElementwiseEntry<run>,
      .regions = true,
  }};
  return kKernels;
}

}  // namespace refrain::ops
