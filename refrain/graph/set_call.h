// Commands of a recording as a GroupKernel sees them: their calls, and which of their arguments are the same bytes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "refrain/graph/compute_graph.h"

namespace refrain::graph {

/// How many bindings of the recording, members of groups included, are to each temp.
std::vector<uint32_t> count_uses(const ComputeGraph& graph);

/// Rows of a command's work: of its first row argument; 0: it has none.
int64_t rows_of(const ComputeGraph& graph, const Command& command);

/// True when both have the same live count, or none.
bool same_live(const ComputeGraph& graph, const Command& a, const Command& b);

/// Builds calls of sets, one at a time, in storage that it keeps.
class SetCalls {
 public:
  /// `uses` is count_uses(graph). Both outlive this.
  SetCalls(const ComputeGraph& graph, std::span<const uint32_t> uses) : graph_(graph), uses_(uses) {}

  /// Commands in recorded order, at least one; none is a fence or a group. Valid until the next call.
  backend::SetCall make(std::span<const Command* const> commands);

 private:
  const ComputeGraph& graph_;
  const std::span<const uint32_t> uses_;
  std::vector<std::vector<backend::ArgumentInfo>> infos_;
  std::vector<std::vector<backend::SetArgument>> args_;
  std::vector<backend::SetMember> members_;
};

}  // namespace refrain::graph
