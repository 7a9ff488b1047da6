// Cache write, CUDA kernels: a block a row.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/core/half.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 256;
using KvWriteParameters = Parameters<KvWriteConstants, 6>;

__device__ inline void store(float& to, float value) { to = value; }
__device__ inline void store(f16& to, float value) { to = f16::saturated(value); }

template <class T>
__global__ void __launch_bounds__(kThreads) kv_write_kernel(const __grid_constant__ KvWriteParameters p) {
  const Running run(p.state);
  const KvWriteConstants& c = p.constants;
  if (blockIdx.x >= run.rows) return;
  const PageTable table = {
      .ids = p.arg<const uint32_t>(3),
      .slots = c.slots,
      .pages_per_slot = c.pages_per_slot,
      .cache_pages = c.pages,
  };
  const StepRow step = p.arg<const StepRow>(2)[blockIdx.x];
  const CheckedRow row = check_row(step, table, step.position);
  if (row.pages == nullptr) {
    if (threadIdx.x == 0) raise_status(p.arg<uint32_t>(5), row.status_word, row.status_bits);
    return;
  }
  const CacheGeometry geometry = {c.pages, c.kv_heads, c.head_dim};
  const uint32_t page = row.pages[row.position / kPagePositions];
  const size_t within = size_t{row.position % kPagePositions} * c.head_dim;
  const uint32_t columns = c.kv_heads * c.head_dim;
  for (uint32_t kind = 0; kind < 2; ++kind) {
    const float* from = p.arg<const float>(kind) + size_t{blockIdx.x} * columns;
    for (uint32_t i = threadIdx.x; i < columns; i += kThreads) {
      store(p.arg<T>(4)[geometry.unit_offset(kind, page, i / c.head_dim) + within + i % c.head_dim], from[i]);
    }
  }
}

GridShape shape(const BoundCommand& command) {
  return {.blocks = command.members[0].constants_as<KvWriteConstants>().rows, .threads = kThreads};
}

template <class T>
PluginKernel kernel(std::string_view name, std::string_view numerics) {
  static const KernelEntry kEntry = plain_entry(kv_write_kernel<T>, shape);
  return {.op = "kv_write",
          .kernel = {
              .name = name,
              .numerics = numerics,
              .accepts = [](const backend::OpCall& call) { return call.args[4].dtype == DTypeOf<T>::value; },
              .launch =
                  [](const backend::OpCall& call, const backend::DeviceInfo&) {
                    return backend::Launch{.rows = call.constants_as<KvWriteConstants>().rows};
                  },
              .entry = &kEntry}};
}

}  // namespace

std::span<const PluginKernel> kv_write_cuda_kernels() {
  static const PluginKernel kKernels[] = {kernel<float>("kv_write_f32_cuda", "exact, copy"),
                                          kernel<f16>("kv_write_f16_cuda", kKvWriteF16Numerics)};
  return kKernels;
}

}  // namespace refrain::ops
