// Pass: makes the mode explicit. Activations get their dtype, and values their size.
#pragma once

#include "refrain/graph/compute_graph.h"
#include "refrain/graph/plan_options.h"

namespace refrain::graph {

/// DType::activation becomes the mode's dtype, in values and in bindings; the sizes of temps become known. Throws InvalidArgument, as check_dtypes(), for an op that does not take the mode's dtype.
void expand(ComputeGraph& graph, Mode mode);

}  // namespace refrain::graph
