// The kernels and layouts that a plugin holds: of the ops in the plugin itself, others in the plugin of the tests. Each links one
// definition of these.
#pragma once

#include <span>

#include "refrain/backend/cuda/plugin.h"

namespace refrain::backend::cuda {

std::span<const PluginKernel> plugin_kernels();
std::span<const GroupKernel> plugin_group_kernels();
std::span<const WeightLayout> plugin_layouts();

}  // namespace refrain::backend::cuda
