// Advance of the slots, CUDA kernel: one thread.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/ops/kernel_tables_cuda.h"
#include "refrain/ops/step_advance/advance_slots.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

using StepAdvanceParameters = Parameters<StepAdvanceConstants, 6>;

__global__ void step_advance_kernel(const __grid_constant__ StepAdvanceParameters p) {
  const Running run(p.state);
  if (threadIdx.x == 0) advance_slots(p.constants, p.args);
}

GridShape shape(const BoundCommand&) { return {.blocks = 1, .threads = kWarp}; }

}  // namespace

std::span<const PluginKernel> step_advance_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(step_advance_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "step_advance",
       .kernel = {
           .name = "step_advance_u32_cuda",
           .numerics = "exact, integer",
           .accepts = [](const backend::OpCall&) { return true; },
           .launch = [](const backend::OpCall&, const backend::DeviceInfo&) { return backend::Launch{}; },
           .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
