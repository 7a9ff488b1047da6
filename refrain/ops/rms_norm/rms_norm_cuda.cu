// rms_norm: CUDA kernel, a block a vector. Element i is summed by thread i % 256, then lanes and warps in halves.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/rms_norm/rms_norm.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 256;
using RmsNormParameters = Parameters<RmsNormConstants, 3>;

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const __grid_constant__ RmsNormParameters p) {
  const Running run(p.state);
  const RmsNormConstants& c = p.constants;
  if (blockIdx.x >= size_t{run.rows} * c.vectors) return;
  const float* input = p.arg<const float>(0) + size_t{blockIdx.x} * c.columns;
  const float* weight = p.arg<const float>(1);
  float* output = p.arg<float>(2) + size_t{blockIdx.x} * c.columns;
  float sum = 0;
  for (uint32_t i = threadIdx.x; i < c.columns; i += kThreads) sum += input[i] * input[i];
  __shared__ float shared[kThreads / kWarp];
  sum = block_join<kThreads>(sum, shared, [](float a, float b) { return a + b; });
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(c.columns) + c.eps);
  for (uint32_t i = threadIdx.x; i < c.columns; i += kThreads) {
    output[i] = weight == nullptr ? input[i] * scale : input[i] * scale * weight[i];
  }
}

GridShape shape(const BoundCommand& command) {
  const auto& c = command.members[0].constants_as<RmsNormConstants>();
  return {.blocks = uint64_t{c.rows} * c.vectors, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> rms_norm_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(rms_norm_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "rms_norm",
       .kernel = {.name = "rms_norm_f32_cuda",
                  .numerics = "exact, f32, 256 lanes",
                  .accepts =
                      [](const backend::OpCall& call) {
                        return !call.args[1].bound || call.args[1].layout->name == "vector_f32";
                      },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<RmsNormConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
