// Finds and opens the CUDA plugin. Part of the library, which links nothing of CUDA.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/backend/cuda/plugin.h"

namespace refrain::backend::cuda {

/// The file name of the plugin.
inline constexpr const char* kPluginFile = "librefrain_cuda.so";

/// Opens the plugin at `path`, a file or the folder that holds it; empty: beside the library, beside the program, and in
/// the folder `lib` next to that. It is never closed. Throws DeviceError, which begins with `device`, when there is none, it
/// cannot be loaded or is not of this build's ABI.
const Plugin& open_plugin(const std::string& path, std::string_view device = "cuda");

/// What a plugin brings, bound to what the library has of the same names.
struct Bundle {
  std::vector<Kernel> kernels;
  std::span<const GroupKernel> group_kernels;
  std::vector<WeightLayout> layouts;
};

/// Finds the ops of the plugin's kernels in `schemas`, and the library's layouts that it names in `layouts`. Throws
/// DeviceError naming the kernel and an op that does not exist or a numerics class that it does not say, or the layout.
Bundle bind_plugin(const Plugin& plugin, std::span<const OpSchema* const> schemas,
                   std::span<const WeightLayout> layouts);

}  // namespace refrain::backend::cuda
