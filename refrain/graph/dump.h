// A Plan as text, for people and for golden tests.
#pragma once

#include <string>

#include "refrain/backend/plan.h"
#include "refrain/graph/plan_options.h"

namespace refrain::graph {

/// One line a command: index, level, kernel, label, its dependencies, and each argument with access and
/// bytes; then how many levels are how many commands wide. Allocations are numbered in order of appearance,
/// so equal plans give equal text in any process.
std::string dump(const backend::PlanData& plan);

/// The figures of a report, one a line.
std::string dump(const PlanReport& report);

}  // namespace refrain::graph
