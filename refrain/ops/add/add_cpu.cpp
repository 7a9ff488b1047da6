// add: portable kernel.
#include "refrain/ops/add/add.h"

namespace refrain::ops {
namespace {

bool accepts(const backend::OpCall&) { return true; }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return elementwise_launch(call.constants_as<AddConstants>());
}

void run(const backend::TileArgs& args, const ElementRange& range) {
  for (size_t row = 0; row < range.rows; ++row) {
    const size_t at = range.first + row * range.stride;
    const float* a = args.arg<float>(0) + at;
    const float* b = args.arg<float>(1) + at;
    float* output = args.arg<float>(2) + at;
    for (size_t i = 0; i < range.count; ++i) output[i] = a[i] + b[i];
  }
}

}  // namespace

std::span<const backend::Kernel> add_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
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
