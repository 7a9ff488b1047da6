// The kernel tables that NAME_cuda.cu files define; the build lists those that exist.
#pragma once

#include <span>

#include "refrain/backend/cuda/plugin.h"

namespace refrain::ops {

#define OP(name) std::span<const backend::cuda::PluginKernel> name##_cuda_kernels();
REFRAIN_CUDA_OPS
#undef OP

}  // namespace refrain::ops
