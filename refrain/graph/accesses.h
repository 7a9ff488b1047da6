// What the commands of a graph touch, for the hazard pass: the one place where bindings become byte ranges.
#pragma once

#include "refrain/graph/compute_graph.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/memory.h"

namespace refrain::graph {

/// Of an expanded recording. Each temp is a memory of its own; a group touches what its members touch.
AccessList accesses(const ComputeGraph& graph);

/// With kernels and their scratch. Each temp is a memory of its own; with a memory plan, temps are bytes of
/// the arena.
AccessList accesses(const LoweredGraph& graph, const MemoryPlan* memory = nullptr);

}  // namespace refrain::graph
