// The merge of attention's parts, CUDA kernel: a block joins the chunks of one query head of one row.
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/attention/attention_chunk.cuh"
#include "refrain/ops/attention_merge/attention_merge.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;
using namespace attention_cuda;

using MergeParameters = Parameters<AttentionMergeConstants, 4>;

__global__ void __launch_bounds__(kThreads)
    attention_merge_kernel(const __grid_constant__ MergeParameters p) {
  const Running run(p.state);
  const AttentionMergeConstants& c = p.constants;
  const uint32_t r = blockIdx.x / c.heads, head = blockIdx.x % c.heads;
  if (r >= run.rows) return;
  const uint32_t chunks = c.chunks_of(p.arg<const StepRow>(2)[r].position);
  const auto place = [&](uint32_t chunk) { return (size_t{r} * c.chunks + chunk) * c.heads + head; };
  float* output = p.arg<float>(3) + (size_t{r} * c.heads + head) * c.head_dim;
  Sums total = p.arg<const Sums>(0)[place(0)];
  if (total.sum == 0) {
    for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) output[d] = 0;
    return;
  }
  for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads)
    output[d] = p.arg<const float>(1)[place(0) * c.head_dim + d];
  for (uint32_t i = 1; i < chunks; ++i) {
    const Factors factors = join(total, p.arg<const Sums>(0)[place(i)]);
    for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads)
      output[d] = factors.join(output[d], p.arg<const float>(1)[place(i) * c.head_dim + d]);
  }
  for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) output[d] /= total.sum;
}

GridShape shape(const BoundCommand& command) {
  const auto& c = command.members[0].constants_as<AttentionMergeConstants>();
  return {.blocks = uint64_t{c.rows} * c.heads, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> attention_merge_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(attention_merge_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "attention_merge",
       .kernel = {.name = "attention_merge_f32_cuda",
                  .numerics = kNumerics,
                  .accepts = [](const backend::OpCall&) { return true; },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<AttentionMergeConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
