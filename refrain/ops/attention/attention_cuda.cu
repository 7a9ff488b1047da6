// Attention, CUDA kernel: a block computes one query head of one row, the cache's blocks of 64 positions one after the other.
// Each score is summed by a warp, lane d % 32 taking dimension d; each output by one thread, positions ascending.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / kWarp;
using AttentionParameters = Parameters<AttentionConstants, 6>;

/// e^x, all but always the nearest float.
__device__ float exponential(float x) { return static_cast<float>(exp(static_cast<double>(x))); }

__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ AttentionParameters p) {
  const Running run(p.state);
  const AttentionConstants& c = p.constants;
  const uint32_t r = blockIdx.x / c.heads, head = blockIdx.x % c.heads;
  if (r >= run.rows) return;
  const uint32_t kv_head = head / (c.heads / c.kv_heads);
  const size_t offset = (size_t{r} * c.heads + head) * c.head_dim;
  const float* query = p.arg<const float>(0) + offset;
  const float* cache = p.arg<const float>(3);
  float* output = p.arg<float>(5) + offset;
  const PageTable table = {
      .ids = p.arg<const uint32_t>(2),
      .slots = c.slots,
      .pages_per_slot = c.pages_per_slot,
      .cache_pages = c.pages,
  };
  __shared__ const uint32_t* pages;  // null: the row is idle or refused
  __shared__ uint32_t first_seen, position;
  __shared__ float scores[kPagePositions];  // then weights
  if (threadIdx.x == 0) {
    const StepRow step = p.arg<const StepRow>(1)[r];
    first_seen = c.first_position(step.position);
    const CheckedRow row = check_row(step, table, first_seen);
    if (row.pages == nullptr) raise_status(p.arg<uint32_t>(4), row.status_word, row.status_bits);
    pages = row.pages;
    position = row.position;
  }
  __syncthreads();
  for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) output[d] = 0;
  if (pages == nullptr) return;
  const CacheGeometry geometry = {c.pages, c.kv_heads, c.head_dim};
  float running_max = -INFINITY, running_sum = 0;
  for (uint32_t page = first_seen / kPagePositions; page <= position / kPagePositions; ++page) {
    const uint32_t first_position = page * kPagePositions;
    const uint32_t skipped = max(first_seen, first_position) - first_position;
    const uint32_t count = min(kPagePositions, position - first_position + 1) - skipped;
    const size_t at = size_t{skipped} * c.head_dim;
    const float* keys = cache + geometry.unit_offset(0, pages[page], kv_head) + at;
    const float* values = cache + geometry.unit_offset(1, pages[page], kv_head) + at;
    __syncthreads();  // the weights of the block before this one have been read
    for (uint32_t j = threadIdx.x / kWarp; j < count; j += kWarps) {
      float dot = 0;
      for (uint32_t d = threadIdx.x % kWarp; d < c.head_dim; d += kWarp)
        dot = __fmaf_rn(query[d], keys[size_t{j} * c.head_dim + d], dot);
      dot = warp_sum(dot);
      if (threadIdx.x % kWarp == 0) scores[j] = dot * c.scale;
    }
    __syncthreads();
    float max = -INFINITY;
    for (uint32_t j = 0; j < count; ++j) max = fmaxf(max, scores[j]);
    __syncthreads();
    if (threadIdx.x < count) scores[threadIdx.x] = exponential(scores[threadIdx.x] - max);
    __syncthreads();
    float sum = 0;
    for (uint32_t j = 0; j < count; ++j) sum += scores[j];
    const float joint_max = fmaxf(running_max, max);
    const float old_scale = exponential(running_max - joint_max), new_scale = exponential(max - joint_max);
    running_max = joint_max;
    running_sum = running_sum * old_scale + sum * new_scale;
    for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) {
      float value = 0;
      for (uint32_t j = 0; j < count; ++j)
        value = __fmaf_rn(scores[j], values[size_t{j} * c.head_dim + d], value);
      output[d] = output[d] * old_scale + value * new_scale;
    }
  }
  for (uint32_t d = threadIdx.x; d < c.head_dim; d += kThreads) output[d] /= running_sum;
}

GridShape shape(const BoundCommand& command) {
  const auto& c = command.members[0].constants_as<AttentionConstants>();
  return {.blocks = uint64_t{c.rows} * c.heads, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> attention_cuda_kernels() {
  static const KernelEntry kEntry = plain_entry(attention_kernel, shape);
  static const PluginKernel kKernels[] = {
      {.op = "attention",
       .kernel = {.name = "attention_f32_cuda",
                  .numerics = "exact, f32 FMA, 32 lanes, blocks of 64 positions",
                  .accepts = [](const backend::OpCall&) { return true; },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<AttentionConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
