// Pass: what the backend would rather have as several commands becomes these. Part of expanding, so before any kernel is chosen.
#pragma once

#include <string>
#include <vector>

#include "refrain/backend/kernel.h"
#include "refrain/graph/compute_graph.h"

namespace refrain::graph {

struct RewriteReport {
  std::vector<std::string> rewrites;  ///< one a call: the rewrite, the call, and what it has become
  std::vector<std::string> misses;  ///< calls that stay as they are although a rewrite replaces them, and why
};

/// Replaces each call of an expanded recording by what the first of `tables.rewrites` makes of it, as backend::Rewrite says.
/// The new commands stand in its place and have its label. `splits`: PlanOptions::splits. Throws Error, naming the
/// rewrite, when what it makes breaks its contract.
RewriteReport rewrite(ComputeGraph& graph, const backend::KernelTables& tables,
                      const backend::DeviceInfo& info, uint32_t splits);

}  // namespace refrain::graph
