// embedding of a weight in tiles_4x1024: a block a row. Values as all layouts give them: product and sum rounded.
#include "refrain/ops/decode_sets/product.cuh"
#include "refrain/ops/decode_sets/tables_cuda.h"
#include "refrain/ops/embedding/embedding_row.h"

namespace refrain::ops {
namespace {

using namespace decode;

constexpr uint32_t kThreads = 1024, kAtOnce = 4;  // so that a step of one row waits for memory once or twice
using EmbeddingParameters = Parameters<EmbeddingConstants, 4>;

__global__ void __launch_bounds__(kThreads)
    embedding_tiles_kernel(const __grid_constant__ EmbeddingParameters p) {
  const Running run(p.state,
                    Trigger::late);  // what is behind it may then read the step's rows ahead of its wait
  if (blockIdx.x >= run.rows) return;
  const EmbeddingConstants& c = p.constants;
  const StepRow row = p.arg<const StepRow>(1)[blockIdx.x];
  const bool valid = embedding_row_valid(c, row, p.arg<uint32_t>(2));
  const uint32_t chunks = tile_chunks(c.columns), within = row.token % kTileRows;
  const std::byte* tile =
      p.arg<const std::byte>(0) + size_t{valid ? row.token / kTileRows : 0} * chunks * kTileBytes;
  float* output = p.arg<float>(3) + size_t{blockIdx.x} * c.columns;
  for (uint32_t first = threadIdx.x; first < c.columns; first += kAtOnce * kThreads) {
    uint32_t bytes[kAtOnce], pairs[kAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      const uint32_t k = min(first + i * kThreads, c.columns - 1), column = k % kTileColumns;
      const std::byte* unit = tile + k / kTileColumns * kTileBytes;
      bytes[i] = __ldg(
          reinterpret_cast<const uint8_t*>(unit + tile_piece_offset(within, column / 32) + column % 16));
      pairs[i] =
          __ldg(reinterpret_cast<const uint32_t*>(unit + tile_scale_offset(within, column / kTileGroup)));
    }
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce; ++i) {
      const uint32_t k = first + i * kThreads;
      const float code = static_cast<float>(bytes[i] >> k % 32 / 16 * 4 & 15);
      const float value = bf16_low(pairs[i]) * code + bf16_high(pairs[i]);
      if (k < c.columns) output[k] = !valid ? 0 : c.scale != 1 ? value * c.scale : value;
    }
  }
}

GridShape shape(const BoundCommand& command) {
  return {.blocks = command.members[0].constants_as<EmbeddingConstants>().rows, .threads = kThreads};
}

}  // namespace

std::span<const PluginKernel> embedding_tiles_cuda_kernels() {
  static const KernelEntry kEntry = [] {
    KernelEntry entry = plain_entry(embedding_tiles_kernel, shape);
    entry.triggers_late = true;
    return entry;
  }();
  static const PluginKernel kKernels[] = {
      {.op = "embedding",
       .kernel = {.name = "embedding_tiles_q4",
                  .numerics = "exact, f32, product and sum rounded",
                  .needs = kFeatureHopper | backend::kFeatureFast,
                  .accepts =
                      [](const backend::OpCall& call) {
                        return call.args[0].layout != nullptr && call.args[0].layout->name == "tiles_4x1024";
                      },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<EmbeddingConstants>().rows};
                      },
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
