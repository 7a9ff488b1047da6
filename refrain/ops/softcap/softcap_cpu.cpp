// softcap: portable kernel.
#include "refrain/ops/softcap/softcap.h"
#include "refrain/ops/tanh.h"

namespace refrain::ops {
namespace {

void run(const backend::TileArgs& args, const ElementRange& range) {
  const float cap = args.constants_as<SoftcapConstants>().cap;
  const float* input = args.arg<float>(0) + range.first;
  float* output = args.arg<float>(1) + range.first;
  for (size_t i = 0; i < range.count; ++i) output[i] = cap * tanh_by_fma(input[i] / cap);
}

}  // namespace

std::span<const backend::Kernel> softcap_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {elementwise_kernel<run>({
      .name = "softcap_f32_portable",
      .op = &softcap_schema,
      .numerics = "exact, f32, elementwise, tanh by FMAs",
  })};
  return kKernels;
}

}  // namespace refrain::ops
