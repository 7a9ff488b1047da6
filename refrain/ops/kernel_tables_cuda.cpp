// The tables of the CUDA plugin: the kernels of every op that has some. Part of the plugin, not of the library.
#include <vector>

#include "refrain/backend/cuda/kernel_tables.h"
#include "refrain/ops/kernel_tables_cuda.h"

namespace refrain::backend::cuda {

std::span<const PluginKernel> plugin_kernels() {
  static const std::vector<PluginKernel> kTable = [] {
    std::vector<PluginKernel> table;
    const auto append = [&](std::span<const PluginKernel> kernels) {
      table.insert(table.end(), kernels.begin(), kernels.end());
    };
#define OP(name) append(ops::name##_cuda_kernels());
    REFRAIN_CUDA_OPS
#undef OP
    return table;
  }();
  return kTable;
}

std::span<const GroupKernel> plugin_group_kernels() { return {}; }

}  // namespace refrain::backend::cuda
