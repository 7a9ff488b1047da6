// add_bias: CUDA kernel, one element a thread.
#include "refrain/ops/add_bias/add_bias.h"
#include "refrain/ops/elementwise.cuh"

namespace refrain::ops {
namespace {

__global__ void __launch_bounds__(kElementwiseThreads)
    add_bias_kernel(const __grid_constant__ backend::cuda::Parameters<AddBiasConstants, 3> p) {
  const backend::cuda::Running run(p.state);
  const size_t i = size_t{blockIdx.x} * kElementwiseThreads + threadIdx.x;
  if (i >= size_t{run.rows} * p.constants.columns) return;
  p.arg<float>(2)[i] = p.arg<const float>(0)[i] + p.arg<const float>(1)[i % p.constants.columns];
}

}  // namespace

std::span<const backend::cuda::PluginKernel> add_bias_cuda_kernels() {
  static const backend::cuda::KernelEntry kEntry =
      backend::cuda::plain_entry(add_bias_kernel, elementwise_shape);
  static const backend::cuda::PluginKernel kKernels[] = {
      {.op = "add_bias",
       .kernel = {.name = "add_bias_f32_cuda",
                  .numerics = "exact, f32, elementwise",
                  .accepts = [](const backend::OpCall&) { return true; },
                  .launch = elementwise_cuda_launch,
                  .entry = &kEntry}}};
  return kKernels;
}

}  // namespace refrain::ops
