// softcap: CUDA kernel.
#include "refrain/ops/elementwise.cuh"
#include "refrain/ops/softcap/softcap.h"
#include "refrain/ops/tanh.h"

namespace refrain::ops {
namespace {

struct Capped {
  __device__ static float of(const SoftcapConstants& c, float x) { return c.cap * tanh_by_fma(x / c.cap); }
};

}  // namespace

std::span<const backend::cuda::PluginKernel> softcap_cuda_kernels() {
  static const backend::cuda::PluginKernel kKernels[] = {
      elementwise_cuda_kernel<Capped, SoftcapConstants, 1>("softcap", "softcap_f32_cuda",
                                                           "exact, f32, elementwise, tanh by FMAs"),
  };
  return kKernels;
}

}  // namespace refrain::ops
