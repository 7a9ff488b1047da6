// Argmax, CUDA kernel: a block a row. The greatest of keys that order values as the op does, so any order of joining is right.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/argmax/argmax.h"
#include "refrain/ops/order_key.cuh"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 1024;
using ArgmaxParameters = Parameters<ArgmaxConstants, 2>;

__global__ void __launch_bounds__(kThreads) argmax_kernel(const __grid_constant__ ArgmaxParameters p) {
  const Running run(p.state);
  if (blockIdx.x >= run.rows) return;
  const float* row = p.arg<const float>(0) + size_t{blockIdx.x} * p.constants.columns;
  OrderKey best = order_key(nanf(""), 0);
  for (uint32_t i = threadIdx.x; i < p.constants.columns; i += kThreads)
    best = max(best, order_key(row[i], i));
  __shared__ OrderKey shared[kThreads / kWarp];
  best = block_join<kThreads>(best, shared, [](OrderKey a, OrderKey b) { return max(a, b); });
  if (threadIdx.x == 0) p.arg<uint32_t>(1)[blockIdx.x] = id_of(best);
}

GridShape shape(const BoundCommand& command) {
  return {.blocks = command.members[0].constants_as<ArgmaxConstants>().rows, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> argmax_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(argmax_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "argmax",
       .kernel = {.name = "argmax_f32_cuda",
                  .numerics = "exact, comparisons",
                  .accepts = [](const backend::OpCall&) { return true; },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<ArgmaxConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
