// The kernels of this folder, as the plugin lists them.
#pragma once

#include <span>

#include "refrain/backend/cuda/plugin.h"

namespace refrain::ops {

/// Numerics classes of ops that sets compute among others.
inline constexpr std::string_view kNormNumerics = "fast, f32, tree of neighbours within 1,024 columns";
inline constexpr std::string_view kAddNumerics = "exact, f32, elementwise";
inline constexpr std::string_view kRopeNumerics = "exact, f32, angles in f64";

/// Single ops in the arithmetic of the sets, for any rows, so that a set gives the bits of its members.
std::span<const backend::cuda::PluginKernel> tiles_cuda_kernels();
std::span<const backend::cuda::PluginKernel> attention_strands_cuda_kernels();
std::span<const backend::cuda::PluginKernel> embedding_tiles_cuda_kernels();
/// Sets of commands. Of two that fit a set, the first is taken.
std::span<const backend::GroupKernel> product_sets_cuda();
std::span<const backend::GroupKernel> attention_sets_cuda();

}  // namespace refrain::ops
