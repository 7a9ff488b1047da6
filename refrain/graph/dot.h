// A Plan as a drawing, in the language of Graphviz. Text for people is in dump.h.
#pragma once

#include <string>

#include "refrain/backend/plan.h"

namespace refrain::graph {

/// A digraph: a node a command (index, kernel, label), levels as ranks, fences as bars between them, and an
/// arrow from each dependency. `dot -Tsvg` draws it.
std::string dump_dot(const backend::PlanData& plan);

}  // namespace refrain::graph
