// All ops as tables: what a device is opened with. The list of ops itself is ops.inc.
#pragma once

#include <span>
#include <vector>

#include "refrain/backend/kernel.h"

namespace refrain::ops {

/// Kernels of every op for host threads, the vectorised before the portable.
std::vector<backend::Kernel> cpu_kernels();

/// For each op one kernel that accepts every call and does nothing.
std::vector<backend::Kernel> null_kernels();

/// What devices may have instead of a call.
std::span<const backend::Rewrite> rewrites();

/// Every op, in the order of ops.inc.
std::span<const backend::OpSchema* const> all_schemas();

}  // namespace refrain::ops
