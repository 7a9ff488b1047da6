// The kernels of this folder, as the plugin lists them.
#pragma once

#include <span>

#include "refrain/backend/cuda/plugin.h"

namespace refrain::ops {

/// Ops that read weights in tiles_4x1024.
std::span<const backend::cuda::PluginKernel> tiles_cuda_kernels();
std::span<const backend::cuda::PluginKernel> embedding_tiles_cuda_kernels();
/// Sets of commands. Of two that fit a set, the first is taken.
std::span<const backend::GroupKernel> product_sets_cuda();
std::span<const backend::GroupKernel> attention_sets_cuda();

}  // namespace refrain::ops
