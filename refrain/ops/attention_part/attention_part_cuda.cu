// The parts of attention, CUDA kernel: a block computes one query head of one row for the chunks of one part.
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/attention/attention_chunk.cuh"
#include "refrain/ops/attention_part/attention_part.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;
using namespace attention_cuda;

using PartParameters = Parameters<AttentionPartConstants, 7>;

template <class T>
__global__ void __launch_bounds__(kThreads) attention_part_kernel(const __grid_constant__ PartParameters p) {
  const Running run(p.state);
  const AttentionConstants& c = p.constants.attention;
  const uint32_t parts = p.constants.parts, chunks = c.chunks();
  const uint32_t head = blockIdx.x % c.heads, part = blockIdx.x / c.heads % parts,
                 r = blockIdx.x / c.heads / parts;
  if (r >= run.rows) return;
  const auto place = [&](uint32_t chunk) { return (size_t{r} * chunks + chunk) * c.heads + head; };
  __shared__ Row shared;
  __shared__ float weights[kAttentionChunk];
  const Row row = check(c, p.arg<const StepRow>(1)[r], p.arg<const uint32_t>(2), p.arg<uint32_t>(4), &shared);
  if (row.pages == nullptr) {
    if (part == 0 && threadIdx.x == 0) p.arg<Sums>(5)[place(0)] = Sums();
    return;
  }
  for (uint32_t i = row.first_chunk(); i <= row.last_chunk(); ++i) {
    if (i % parts != part) continue;
    const Chunk<T> chunk(c, row, p.arg<const float>(0) + (size_t{r} * c.heads + head) * c.head_dim,
                         p.arg<const T>(3), head / (c.heads / c.kv_heads), i, weights);
    const size_t at = place(i - row.first_chunk());
    if (threadIdx.x == 0) p.arg<Sums>(5)[at] = chunk.sums;
    for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads)
      p.arg<float>(6)[at * c.head_dim + d] = chunk.weighted(d);
  }
}

GridShape shape(const BoundCommand& command) {
  const auto& c = command.members[0].constants_as<AttentionPartConstants>();
  return {.blocks = uint64_t{c.attention.rows} * c.parts * c.attention.heads, .threads = kThreads};
}

template <class T>
PluginKernel kernel(std::string_view name) {
  static const KernelEntry kEntry = plain_entry(attention_part_kernel<T>, shape);
  return {
      .op = "attention_part",
      .kernel = {
          .name = name,
          .numerics = kNumerics,
          .accepts = [](const backend::OpCall& call) { return call.args[3].dtype == DTypeOf<T>::value; },
          .launch =
              [](const backend::OpCall& call, const backend::DeviceInfo&) {
                return backend::Launch{.rows = call.constants_as<AttentionPartConstants>().attention.rows};
              },
          .entry = &kEntry}};
}

}  // namespace

std::span<const PluginKernel> attention_part_cuda_kernels() {
  static const PluginKernel kKernels[] = {kernel<float>("attention_part_f32_cuda"),
                                          kernel<f16>("attention_part_f16_cuda")};
  return kKernels;
}

}  // namespace refrain::ops
