// What fusing asks of one command: its iteration, its units, its work, and whether this device can have it in a group.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "refrain/backend/kernel.h"
#include "refrain/graph/compute_graph.h"

namespace refrain::graph {

struct FuseNode {
  backend::Iteration iteration = backend::Iteration::other;
  uint32_t units = 0;      ///< 0: never fused
  uint32_t input = kNone;  ///< the argument that a contraction reads whole rows of, if there is exactly one
  int64_t rows = 0;
  uint64_t flops = 0;           ///< of one row
  uint32_t rows_per_block = 1;  ///< of its kernel
  uint32_t granule = 1;         ///< units that its kernel does best in multiples of
  std::string refusal;          ///< why this device cannot have it in a group

  // What the pass finds out.
  size_t fences = 0;  ///< before it
  /// A reduction of whole rows that a contraction reads: left to be its prologue.
  bool feeds_contraction = false;
  bool grouped = false;
  bool refused = false;  ///< a group has refused it, and that is noted
};

/// Of a command with an op. `infos` is storage for its call.
FuseNode fuse_node(const ComputeGraph& graph, const Command& command,
                   std::span<const backend::Kernel> kernels, const backend::DeviceInfo& info,
                   std::vector<backend::ArgumentInfo>& infos);

}  // namespace refrain::graph
