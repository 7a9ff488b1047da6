// The tables of the CUDA plugin: the kernels of every op that has some. Part of the plugin, not of the library.
#include <vector>

#include "refrain/backend/cuda/kernel_tables.h"
#include "refrain/ops/decode_sets/tables_cuda.h"

namespace refrain::ops {

// REFRAIN_CUDA_KERNELS: KERNELS(file) for each file NAME_cuda.cu.
#define KERNELS(file) std::span<const backend::cuda::PluginKernel> file##_kernels();
REFRAIN_CUDA_KERNELS
#undef KERNELS

}  // namespace refrain::ops

namespace refrain::backend::cuda {

std::span<const PluginKernel> plugin_kernels() {
  static const std::vector<PluginKernel> kTable = [] {
    std::vector<PluginKernel> table;
    const auto append = [&](std::span<const PluginKernel> kernels) {
      table.insert(table.end(), kernels.begin(), kernels.end());
    };
    append(ops::tiles_cuda_kernels());
    append(ops::attention_strands_cuda_kernels());
    append(ops::embedding_tiles_cuda_kernels());
#define KERNELS(file) append(ops::file##_kernels());
    REFRAIN_CUDA_KERNELS
#undef KERNELS
    return table;
  }();
  return kTable;
}

std::span<const GroupKernel> plugin_group_kernels() {
  static const std::vector<GroupKernel> kTable = [] {
    std::vector<GroupKernel> table;
    for (const std::span<const GroupKernel> kernels : {ops::product_sets_cuda(), ops::attention_sets_cuda()})
      table.insert(table.end(), kernels.begin(), kernels.end());
    return table;
  }();
  return kTable;
}

std::span<const WeightLayout> plugin_layouts() {
  static constexpr WeightLayout kLibrarys[] = {
      {.name = "tiles_4x1024"}, {.name = "vector_f32"}, {.name = "rows"}, {.name = "grouped"}};
  return kLibrarys;
}

}  // namespace refrain::backend::cuda
