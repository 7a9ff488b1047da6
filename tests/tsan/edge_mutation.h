// Proves with ThreadSanitizer that each edge of a plan is needed and kept: drops one at a time and expects a
// report.
//
// Each command is bound to a worker of its own, so that nothing but its deps orders it: no claim, no mutex
// and no sleep comes between two commands. Not a checker of plans (graph/check), and of no use without
// ThreadSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain::backend::testing {

/// True in a build with -fsanitize=thread.
bool under_thread_sanitizer();

/// A stored edge: `command` waits for `dep`, which stands at plan.deps[position].
struct Edge {
  uint32_t position = 0;
  uint32_t command = 0;
  uint32_t dep = 0;
};

/// The edges between kernels of `plan`. Those on a fence are the fence's own order, which cannot be dropped.
std::vector<Edge> edges(const PlanData& plan);

struct MutationInput {
  const PlanData* plan = nullptr;  ///< of at most 200 commands; its allocations are of host memory
  std::span<const UpdateData> updates = {};
  std::span<const Kernel> kernels = {};
  /// Replays of a run. ThreadSanitizer remembers four accesses of each 8 bytes and forgets one at random, so
  /// that a single replay may miss a race where several commands read the same bytes.
  uint32_t submissions = 10;
  /// 0: each command is bound to a worker of its own. Else any of so many workers, which share a command's tiles;
  /// whole plans alone: what one worker runs is ordered without any edge.
  uint32_t sharing_workers = 0;
};

struct RunResult {
  bool reported = false;  ///< ThreadSanitizer reported a race
  bool failed = false;    ///< the run ended otherwise than with or without a report
  std::string output;     ///< the report, or what went wrong
};

/// Runs the plan with edge `dropped` (null: with all) in a child process, in a fresh arena. Call it while
/// this process has no other thread: in a child of several threads ThreadSanitizer ignores everything. PlanData
/// it with the null device, whose memory the host can fill.
RunResult run_with_edge_dropped(const MutationInput& input, const Edge* dropped);

}  // namespace refrain::backend::testing
