// Begin of a step, CUDA kernel: one thread.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/step_begin/resolve_step.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

using StepBeginParameters = Parameters<StepBeginConstants, 7>;

__global__ void step_begin_kernel(const __grid_constant__ StepBeginParameters p) {
  const Running run(p.state);
  if (threadIdx.x == 0) resolve_step(p.constants, p.args);
}

GridShape shape(const BoundCommand&) { return {.blocks = 1, .threads = kWarp}; }

}  // namespace

std::span<const PluginKernel> step_begin_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(step_begin_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "step_begin",
       .kernel = {
           .name = "step_begin_u32_cuda",
           .numerics = "exact, integer",
           .accepts = [](const backend::OpCall&) { return true; },
           .launch = [](const backend::OpCall&, const backend::DeviceInfo&) { return backend::Launch{}; },
           .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
