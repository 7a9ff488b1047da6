// Attention, CUDA kernel: a block computes one query head of one row, one chunk of 256 positions after the other.
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/attention/attention_chunk.cuh"

namespace refrain::ops {
namespace {

using namespace backend::cuda;
using namespace attention_cuda;

using AttentionParameters = Parameters<AttentionConstants, 6>;

template <class T>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ AttentionParameters p) {
  const Running run(p.state);
  const AttentionConstants& c = p.constants;
  const uint32_t r = blockIdx.x / c.heads, head = blockIdx.x % c.heads;
  if (r >= run.rows) return;
  const size_t offset = (size_t{r} * c.heads + head) * c.head_dim;
  float* output = p.arg<float>(5) + offset;
  __shared__ Row shared;
  __shared__ float weights[kAttentionChunk];
  const Row row = check(c, p.arg<const StepRow>(1)[r], p.arg<const uint32_t>(2), p.arg<uint32_t>(4), &shared);
  if (row.pages == nullptr) {
    for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) output[d] = 0;
    return;
  }
  Sums total;
  for (uint32_t i = row.first_chunk(); i <= row.last_chunk(); ++i) {
    const Chunk<T> chunk(c, row, p.arg<const float>(0) + offset, p.arg<const T>(3),
                         head / (c.heads / c.kv_heads), i, weights);
    // The first chunk is what the others are joined to.
    const bool first = i == row.first_chunk();
    Factors factors;
    if (first) {
      total = chunk.sums;
    } else {
      factors = join(total, chunk.sums);
    }
    for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) {
      const float value = chunk.weighted(d);
      output[d] = first ? value : factors.join(output[d], value);
    }
  }
  for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) output[d] /= total.sum;
}

GridShape shape(const BoundCommand& command) {
  const auto& c = command.members[0].constants_as<AttentionConstants>();
  return {.blocks = uint64_t{c.rows} * c.heads, .threads = kThreads};
}

template <class T>
PluginKernel kernel(std::string_view name) {
  static const KernelEntry kEntry = plain_entry(attention_kernel<T>, shape);
  return {.op = "attention",
          .kernel = {
              .name = name,
              .numerics = kNumerics,
              .accepts = [](const backend::OpCall& call) { return call.args[3].dtype == DTypeOf<T>::value; },
              .launch =
                  [](const backend::OpCall& call, const backend::DeviceInfo&) {
                    return backend::Launch{.rows = call.constants_as<AttentionConstants>().rows};
                  },
              .entry = &kEntry}};
}

}  // namespace

std::span<const PluginKernel> attention_cuda_kernels() {
  static const PluginKernel kKernels[] = {kernel<float>("attention_f32_cuda"),
                                          kernel<f16>("attention_f16_cuda")};
  return kKernels;
}

}  // namespace refrain::ops
