// Gathering of rows, CUDA kernel: a block a row.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/gather_rows/gather_rows.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 1024, kAtOnce = 4;
using GatherRowsParameters = Parameters<GatherRowsConstants, 5>;

__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const __grid_constant__ GatherRowsParameters p) {
  const GatherRowsConstants& c = p.constants;
  uint32_t live = 0, row = 0;
  const auto find = [&] {
    live = __ldcg(p.arg<const uint32_t>(2));
    row = __ldcg(p.arg<const uint32_t>(1) + blockIdx.x);
  };
  const Running run(p.state, [&] {
    if (p.state.ahead) find();
  });
  if (!p.state.ahead) find();
  if (blockIdx.x >= run.rows) return;
  const bool valid = row < live && row < c.input_rows;
  if (!valid && row != kIdle && threadIdx.x == 0)
    raise_status(p.arg<uint32_t>(3), c.status_word, kOutputOutOfRange);
  const float* from = p.arg<const float>(0) + (valid ? size_t{row} * c.columns : 0);
  float* to = p.arg<float>(4) + size_t{blockIdx.x} * c.columns;
  for (uint32_t first = threadIdx.x; first < c.columns; first += kAtOnce * kThreads) {
    float values[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      const uint32_t k = first + i * kThreads;
      values[i] = valid && k < c.columns ? __ldcg(from + k) : 0.0f;
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      if (first + i * kThreads < c.columns) to[first + i * kThreads] = values[i];
    }
  }
}

GridShape shape(const BoundCommand& command) {
  return {.blocks = command.members[0].constants_as<GatherRowsConstants>().output_rows, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> gather_rows_cuda_kernels() {
  static const KernelEntry kEntry = [] {
    KernelEntry entry = plain_entry(gather_rows_kernel, shape);
    entry.reads_ahead = [](uint32_t, uint32_t argument) { return argument == 1 || argument == 2; };
    return entry;
  }();
  static const PluginKernel kKernels[] = {
      {.op = "gather_rows",
       .kernel = {.name = "gather_rows_f32_cuda",
                  .numerics = "exact, copy",
                  .accepts = [](const backend::OpCall&) { return true; },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<GatherRowsConstants>().output_rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
