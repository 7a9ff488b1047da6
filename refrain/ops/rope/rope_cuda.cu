// Rope, CUDA kernel: a block a row. Cosines and sines of the float32 angle are taken in double, so that they are all but
// always the nearest floats.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 256;
using RopeParameters = Parameters<RopeConstants, 4>;

__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ RopeParameters p) {
  const Running run(p.state);
  const RopeConstants& c = p.constants;
  if (blockIdx.x >= run.rows) return;
  const uint32_t place = p.arg<const StepRow>(1)[blockIdx.x].position;
  const auto position = static_cast<float>(place);
  const float scale = c.scale_at(place);
  const float* frequencies = p.arg<const float>(2);
  const size_t row = size_t{blockIdx.x} * c.heads * c.head_dim;
  const float* input = p.arg<const float>(0) + row;
  float* output = p.arg<float>(3) + row;
  const uint32_t stride = c.interleaved != 0 ? 2 : 1;
  const uint32_t partner = c.interleaved != 0 ? 1 : c.pairs;
  for (uint32_t i = threadIdx.x; i < c.pairs; i += kThreads) {
    double exact_sine, exact_cosine;
    sincos(static_cast<double>(position * frequencies[i]), &exact_sine, &exact_cosine);
    const float sine = static_cast<float>(exact_sine) * scale,
                cosine = static_cast<float>(exact_cosine) * scale;
    for (size_t at = size_t{i} * stride; at < size_t{c.heads} * c.head_dim; at += c.head_dim) {
      const float x = input[at], y = input[at + partner];
      output[at] = x * cosine - y * sine;
      output[at + partner] = y * cosine + x * sine;
    }
  }
  const uint32_t rest = c.head_dim - 2 * c.pairs;
  for (uint32_t i = threadIdx.x; i < c.heads * rest; i += kThreads) {
    const size_t at = size_t{i / rest} * c.head_dim + 2 * c.pairs + i % rest;
    output[at] = input[at];
  }
}

GridShape shape(const BoundCommand& command) {
  return {.blocks = command.members[0].constants_as<RopeConstants>().rows, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> rope_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(rope_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "rope",
       .kernel = {
           .name = "rope_f32_cuda",
           .numerics = "exact, f32, angles in f64",
           .accepts = [](const backend::OpCall& call) { return call.args[2].layout->name == "vector_f32"; },
           .launch =
               [](const backend::OpCall& call, const backend::DeviceInfo&) {
                 return backend::Launch{.rows = call.constants_as<RopeConstants>().rows};
               },
           .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
