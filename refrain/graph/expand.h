// Pass: makes the mode explicit. Activations get their dtype, and values their size.
#pragma once

#include "refrain/graph/compute_graph.h"
#include "refrain/graph/plan_options.h"

namespace refrain::graph {

/// DType::activation becomes the mode's dtype, in values and in bindings; the sizes of temps become known. What schemas list
/// and check is checked again, for these dtypes: throws InvalidArgument.
void expand(ComputeGraph& graph, Mode mode);

}  // namespace refrain::graph
