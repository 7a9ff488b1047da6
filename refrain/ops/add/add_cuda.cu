// add: CUDA kernel.
#include "refrain/ops/add/add.h"
#include "refrain/ops/elementwise.cuh"

namespace refrain::ops {
namespace {

struct Sum {
  __device__ static float of(const ElementwiseConstants&, float a, float b) { return a + b; }
};

}  // namespace

std::span<const backend::cuda::PluginKernel> add_cuda_kernels() {
  static const backend::cuda::PluginKernel kKernels[] = {
      elementwise_cuda_kernel<Sum>("add", "add_f32_cuda", "exact, f32, elementwise"),
  };
  return kKernels;
}

}  // namespace refrain::ops
