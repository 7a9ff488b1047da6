// Pass: fuses commands that a kernel of the backend computes as one, for backends that do not compose kernels.
#pragma once

#include <span>

#include "refrain/graph/compute_graph.h"
#include "refrain/graph/fuse.h"

namespace refrain::graph {

/// Fuses an expanded recording in place. From each command on, in recorded order, a set grows by the commands that
/// follow (kReach of them, up to a fence) as long as a kernel fits in part or whole; it becomes one command, of the
/// last kernel that was whole. Its members have the same rows and live count, and no path of dependencies leads out of
/// it and back. A command that no set takes stays as it is, for a kernel of its op alone. Besides derive_order,
/// O(commands) with a constant for the reach and the kernels.
FuseReport fuse_sets(ComputeGraph& graph, std::span<const backend::GroupKernel> kernels,
                     const backend::DeviceInfo& info);

}  // namespace refrain::graph
