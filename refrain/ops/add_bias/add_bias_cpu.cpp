// add_bias: portable kernel.
#include "refrain/ops/add_bias/add_bias.h"

namespace refrain::ops {
namespace {

void run(const backend::TileArgs& args, const ElementRange& range) {
  each_row_part(args.constants_as<AddBiasConstants>().columns, range,
                [&](size_t first, size_t column, size_t count) {
                  const float* input = args.arg<float>(0) + first;
                  const float* bias = args.arg<const float>(1) + column;
                  float* output = args.arg<float>(2) + first;
                  for (size_t i = 0; i < count; ++i) output[i] = input[i] + bias[i];
                });
}

}  // namespace

std::span<const backend::Kernel> add_bias_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "add_bias_f32_portable",
      .op = &add_bias_schema,
      .numerics = "exact, f32, elementwise",
  })};
  return kKernels;
}

}  // namespace refrain::ops
