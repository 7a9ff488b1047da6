// embedding: the CUDA kernel, a block a row.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/ops/embedding/embedding_row.h"
#include "refrain/ops/weight_row.cuh"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 256;

struct Table {
  EmbeddingConstants op;
  MatrixRows weight;
};

Table table_of(const EmbeddingConstants& c) { return {c, matrix_rows(*c.format, c.columns)}; }

using EmbeddingParameters = Parameters<Table, 4>;

__global__ void __launch_bounds__(kThreads) embedding_kernel(const __grid_constant__ EmbeddingParameters p) {
  const Running run(p.state,
                    Trigger::late);  // what is behind it may then read the step's rows ahead of its wait
  if (blockIdx.x >= run.rows) return;
  const EmbeddingConstants& c = p.constants.op;
  const StepRow row = p.arg<const StepRow>(1)[blockIdx.x];
  const bool valid = embedding_row_valid(c, row, p.arg<uint32_t>(2));
  const std::byte* weight =
      p.arg<const std::byte>(0) + (valid ? row.token * p.constants.weight.row_bytes : 0);
  float* output = p.arg<float>(3) + size_t{blockIdx.x} * c.columns;
  for (uint32_t k = threadIdx.x; k < c.columns; k += kThreads) {
    const float value = valid ? element_at(p.constants.weight, weight, k) : 0.0f;
    output[k] = c.scale != 1 ? value * c.scale : value;
  }
}

GridShape grid(const BoundCommand& command) {
  return {.blocks = command.members[0].constants_as<EmbeddingConstants>().rows, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> embedding_cuda_kernels() {
  static const KernelEntry kEntry = [] {
    KernelEntry entry = converted_entry<table_of>(embedding_kernel, grid);
    entry.triggers_late = true;
    return entry;
  }();
  static const PluginKernel kKernels[] = {
      {.op = "embedding",
       .kernel = {.name = "embedding_f32_cuda",
                  .numerics = "exact, f32, as decoded",
                  .accepts = [](const backend::OpCall& call) { return has_matrix_rows(call.args[0]); },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<EmbeddingConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
