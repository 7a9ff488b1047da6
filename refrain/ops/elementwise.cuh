// The CUDA kernel of elementwise ops: one element a thread.
#pragma once

#include <utility>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

inline constexpr uint32_t kElementwiseThreads = 256;

/// `Value`: how an element of the output follows from the constants and the elements of the `kInputs` arguments before it.
template <class Value, class Constants, size_t... kInputs>
__device__ float element(const backend::cuda::Parameters<Constants, sizeof...(kInputs) + 1>& p, size_t i,
                         std::index_sequence<kInputs...>) {
  return Value::of(p.constants, p.template arg<const float>(kInputs)[i]...);
}

template <class Value, class Constants, size_t kInputs>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(const __grid_constant__ backend::cuda::Parameters<Constants, kInputs + 1> p) {
  const backend::cuda::Running run(p.state);
  const size_t i = size_t{blockIdx.x} * kElementwiseThreads + threadIdx.x;
  const auto& size = reinterpret_cast<const ElementwiseConstants&>(p.constants);
  if (i >= size_t{run.rows} * size.columns) return;
  p.template arg<float>(kInputs)[i] = element<Value>(p, i, std::make_index_sequence<kInputs>());
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
template <class Value, class Constants = ElementwiseConstants, size_t kInputs = 2>
backend::cuda::PluginKernel elementwise_cuda_kernel(std::string_view op, std::string_view name,
                                                    std::string_view numerics) {
  static const backend::cuda::KernelEntry kEntry =
      backend::cuda::plain_entry(elementwise_kernel<Value, Constants, kInputs>, elementwise_shape);
  return {.op = op,
          .kernel = {.name = name,
                     .numerics = numerics,
                     .accepts = [](const backend::OpCall&) { return true; },
                     .launch = elementwise_cuda_launch,
                     .entry = &kEntry}};
}

}  // namespace refrain::ops
