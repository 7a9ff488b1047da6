// add: portable kernel.
#include "refrain/ops/add/add.h"

namespace refrain::ops {
namespace {

void run(const backend::TileArgs& args, const ElementRange& range) {
  const float* a = args.arg<float>(0) + range.first;
  const float* b = args.arg<float>(1) + range.first;
  float* output = args.arg<float>(2) + range.first;
  for (size_t i = 0; i < range.count; ++i) output[i] = a[i] + b[i];
}

}  // namespace

std::span<const backend::Kernel> add_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "add_f32_portable",
      .op = &add_schema,
      .numerics = "exact, f32, elementwise",
  })};
  return kKernels;
}

}  // namespace refrain::ops
