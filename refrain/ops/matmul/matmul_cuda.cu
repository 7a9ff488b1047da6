// matmul: the CUDA kernel. A warp computes one output of up to eight rows: element k is summed in lane k % 32, ascending, one
// FMA each; then lanes in halves. Neither the number of rows nor their neighbours change a bit.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/core/checked.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/weight_row.cuh"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / kWarp;
constexpr uint32_t kRowsPerWarp = 8;

struct Product {
  uint32_t outputs;
  MatrixRows weight;
};

Product product_of(const MatmulConstants& c) { return {c.outputs, matrix_rows(*c.format, c.columns)}; }

using MatmulParameters = Parameters<Product, 3>;

__global__ void __launch_bounds__(kThreads) matmul_kernel(const __grid_constant__ MatmulParameters p) {
  const Running run(p.state);
  const uint32_t outputs = p.constants.outputs, columns = p.constants.weight.columns;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t blocks_per_rows = ceil_div(outputs, kWarps);
  const uint32_t output = blockIdx.x % blocks_per_rows * kWarps + threadIdx.x / kWarp;
  const uint32_t first = blockIdx.x / blocks_per_rows * kRowsPerWarp;
  if (output >= outputs || first >= run.rows) return;
  const uint32_t rows = min(kRowsPerWarp, run.rows - first);
  const float* input = p.arg<const float>(0) + size_t{first} * columns;
  const std::byte* weight = p.arg<const std::byte>(1) + output * p.constants.weight.row_bytes;
  float sums[kRowsPerWarp] = {};
  for (uint32_t k = lane; k < columns; k += kWarp) {
    const float value = element_at(p.constants.weight, weight, k);
#pragma unroll
    for (uint32_t r = 0; r < kRowsPerWarp; ++r) {
      if (r < rows) sums[r] = __fmaf_rn(input[size_t{r} * columns + k], value, sums[r]);
    }
  }
#pragma unroll
  for (uint32_t r = 0; r < kRowsPerWarp; ++r) {
    const float sum = warp_sum(sums[r]);
    if (r < rows && lane == 0) p.arg<float>(2)[size_t{first + r} * outputs + output] = sum;
  }
}

GridShape grid(const BoundCommand& command) {
  const auto& c = command.members[0].constants_as<MatmulConstants>();
  return {.blocks = uint64_t{ceil_div(c.outputs, kWarps)} * ceil_div(c.rows, kRowsPerWarp),
          .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> matmul_cuda_kernels() {
  static const KernelEntry kEntry = converted_entry<product_of>(matmul_kernel, grid);
  static const PluginKernel kKernels[] = {
      {.op = "matmul",
       .kernel = {.name = "matmul_f32_cuda",
                  .numerics = "exact, f32 FMA, 32 lanes, ascending",
                  .accepts = [](const backend::OpCall& call) { return has_matrix_rows(call.args[1]); },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<MatmulConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
