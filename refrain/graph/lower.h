// Pass: chooses a kernel for every command, and with it tiles and scratch.
#pragma once

#include <span>
#include <vector>

#include "refrain/backend/kernel.h"
#include "refrain/backend/plan.h"
#include "refrain/graph/compute_graph.h"
#include "refrain/graph/numerics.h"

namespace refrain::graph {

/// An argument before memory is planned.
struct LoweredArgument {
  backend::BufferView view;  ///< a temp: offset and bytes within it
  uint32_t temp = kNone;     ///< index into LoweredGraph::temp_bytes; kNone: `view` is memory
  backend::Access access = backend::Access::in;
  bool sealed = false;
};

/// Commands with their kernels, in recorded order; no edges and no arena yet.
struct LoweredGraph {
  std::vector<backend::PlanCommand> commands;  ///< args and constants as in a Plan; deps empty
  std::vector<LoweredArgument> args;
  std::vector<size_t> temp_bytes;  ///< values and scratch
  size_t scratch_bytes = 0;        ///< of temp_bytes, those that are scratch
  std::vector<std::byte> constants;
  std::vector<std::string> labels;
  std::vector<backend::FusedGroup> groups;  ///< these four as in a Plan
  std::vector<backend::FusedMember> members;
  std::vector<backend::FusedComponent> components;
  std::vector<backend::PlacedMember> placed;
  size_t ticket_bytes = 0;  ///< as in a Plan
  NumericsBook numerics;
};

/// The first kernel of `kernels` that the device has the features for and that accepts the call; null: there
/// is none.
const backend::Kernel* select_kernel(const backend::OpCall& call, std::span<const backend::Kernel> kernels,
                                     const backend::DeviceInfo& info);

/// The work of one of `rows` rows: OpSchema::cost, or what stands for it.
uint64_t row_flops(const backend::OpCall& call, uint64_t rows);

/// How many of the `units` of a row make one tile of a component of a group, which works `flops` for a row and does best in
/// multiples of `granule` units: tiles are of like work. From shapes alone: bits and tiles do not depend on workers.
uint32_t units_per_tile(uint32_t units, uint64_t flops, uint64_t granule, uint32_t rows_per_block);

/// Gives each command, and each member of a group, the kernel of select_kernel(). Throws InvalidArgument,
/// naming op, dtypes and device, when there is none, and where kernels mix numerics classes.
LoweredGraph lower(const ComputeGraph& graph, std::span<const backend::Kernel> kernels,
                   const backend::DeviceInfo& info);

}  // namespace refrain::graph
