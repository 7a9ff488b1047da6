// The CUDA kernel of elementwise ops with two inputs: one element a thread.
#pragma once

#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

using ElementwiseParameters = backend::cuda::Parameters<ElementwiseConstants, 3>;

inline constexpr uint32_t kElementwiseThreads = 256;

template <class Combine>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(const __grid_constant__ ElementwiseParameters p) {
  const backend::cuda::Running run(p.state);
  const size_t i = size_t{blockIdx.x} * kElementwiseThreads + threadIdx.x;
  if (i >= size_t{run.rows} * p.constants.columns) return;
  p.arg<float>(2)[i] = Combine()(p.arg<const float>(0)[i], p.arg<const float>(1)[i]);
}

inline backend::cuda::GridShape elementwise_shape(const backend::cuda::BoundCommand& command) {
  const auto& c = command.members[0].constants_as<ElementwiseConstants>();
  return {.blocks = ceil_div<uint64_t>(uint64_t{c.rows} * c.columns, kElementwiseThreads),
          .threads = kElementwiseThreads};
}

inline backend::Launch elementwise_cuda_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  return {.rows = call.constants_as<ElementwiseConstants>().rows};
}

/// The row of such a kernel.
template <class Combine>
backend::cuda::PluginKernel elementwise_cuda_kernel(std::string_view op, std::string_view name,
                                                    std::string_view numerics) {
  static const backend::cuda::KernelEntry kEntry =
      backend::cuda::plain_entry(elementwise_kernel<Combine>, elementwise_shape);
  return {.op = op,
          .kernel = {.name = name,
                     .numerics = numerics,
                     .accepts = [](const backend::OpCall&) { return true; },
                     .launch = elementwise_cuda_launch,
                     .entry = &kEntry}};
}

}  // namespace refrain::ops
