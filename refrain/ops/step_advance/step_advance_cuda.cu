// Advance of the slots, CUDA kernel: one thread.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/step_advance/advance_slots.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

using StepAdvanceParameters = Parameters<StepAdvanceConstants, 6>;

__global__ void step_advance_kernel(const __grid_constant__ StepAdvanceParameters p) {
  // The ring lies in memory of the host, far away, and only this op writes it.
  RingHeader counts;
  const auto load = [&] {
    const auto& ring = *static_cast<const volatile RingHeader*>(p.args[5]);
    counts.appended = ring.appended;
    counts.steps = ring.steps;
  };
  const Running run(p.state, [&] {
    if (p.state.ahead) load();
  });
  if (threadIdx.x != 0) return;
  if (!p.state.ahead) load();
  advance_slots(p.constants, p.args, counts);
}

GridShape shape(const BoundCommand&) { return {.blocks = 1, .threads = kWarp}; }

}  // namespace

std::span<const PluginKernel> step_advance_cuda_kernels() {
  static const KernelEntry kEntry = [] {
    KernelEntry entry = plain_entry(step_advance_kernel, shape);
    entry.reads_ahead = [](uint32_t, uint32_t argument) { return argument == 5; };
    return entry;
  }();
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
