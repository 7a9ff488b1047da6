// add: portable kernel.
#include "refrain/ops/add/add.h"

namespace refrain::ops {
namespace {

bool accepts(const device::OpCall&) { return true; }

device::Launch launch(const device::OpCall& call, const device::DeviceInfo&) {
  return elementwise_launch(call.constants_as<AddConstants>());
}

void run(const device::TileArgs& args, const ElementRange& range) {
  const float* a = args.arg<float>(0) + range.first;
  const float* b = args.arg<float>(1) + range.first;
  float* output = args.arg<float>(2) + range.first;
  for (size_t i = 0; i < range.count; ++i) output[i] = a[i] + b[i];
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
