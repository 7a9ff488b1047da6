// silu_mul: CUDA kernel. The exponential is taken in double, so that it is all but always the nearest float.
#include "refrain/ops/elementwise.cuh"
#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {
namespace {

struct Gated {
  __device__ static float of(const ElementwiseConstants&, float gate, float up) {
    const float power = static_cast<float>(exp(-static_cast<double>(gate)));
    return gate / (1.0f + power) * up;
  }
};

}  // namespace

std::span<const backend::cuda::PluginKernel> silu_mul_cuda_kernels() {
  static const backend::cuda::PluginKernel kKernels[] = {
      elementwise_cuda_kernel<Gated>("silu_mul", "silu_mul_f32_cuda",
                                     "exact, f32, elementwise, exp of CUDA in f64"),
  };
  return kKernels;
}

}  // namespace refrain::ops
