// The passes in their order: expand, rewrite, fuse, lower, hazards, memory, hazards again, check.
#pragma once

#include <span>
#include <utility>

#include "refrain/backend/kernel.h"
#include "refrain/backend/plan.h"
#include "refrain/graph/compute_graph.h"
#include "refrain/graph/plan_options.h"

namespace refrain::graph {

/// Turns a recording, which is expanded in place, into a Plan for a device. Throws InvalidArgument when no
/// kernel accepts a command or kernels mix numerics classes, Error when the independent check refutes the derived order (a defect of this
/// library).
std::pair<backend::PlanData, PlanReport> make_plan(ComputeGraph&& graph, const backend::KernelTables& tables,
                                                   const backend::DeviceInfo& info,
                                                   const PlanOptions& options);

}  // namespace refrain::graph
