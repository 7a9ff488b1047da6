// Pass: finds groups of commands that can share tiles and makes each one command. Knows no op by name: only
// what schemas say of iteration, units and access.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "refrain/backend/kernel.h"
#include "refrain/graph/compute_graph.h"

namespace refrain::graph {

struct FuseReport {
  std::vector<std::string> fusions;  ///< one a group: its name and the commands in it
  size_t recorded_levels = 0;        ///< before fusing
  std::vector<std::string> misses;   ///< what did not join a group that it could have joined, and why
};

/// Fuses an expanded recording in place. A group is
///   - contractions that read one input;
///   - before them, if it feeds only them, the reduction of whole rows that gives this input (the
///     prologue: each worker recomputes it into scratch, so its value needs no memory), where doing so in
///     several costs at most a sixteenth of the contractions;
///   - after them, whatever takes values on unit by unit.
/// A command joins when
///   - its kernel on this device computes any rectangle of rows and units;
///   - rows and live count are those of the group;
///   - each conflict between two members is on a Temp that both touch unit by unit, or is the value of
///     the prologue;
///   - no path of dependencies, fences and groups formed before included, leaves the group and comes back;
///   - the units of members that hand on values divide, and a unit is not too much of the work for
///     one worker;
///   - the group is not full (64 members), not far away (1024 commands), and has not tried 64 others of its kind
///     before (siblings, or whatever takes values on): the next one is a miss that says so.
/// All other values stay what they were, so a value may be read outside, too. A group stands where its first
/// member stood, behind what its later members follow; everything else keeps the recorded order. Besides
/// derive_order, O(commands) with a constant for the largest group.
FuseReport fuse(ComputeGraph& graph, std::span<const backend::Kernel> kernels,
                const backend::DeviceInfo& info);

/// The ops of a group, "rms_norm+matmul*2+silu_mul"; a plain command's op; "fence".
std::string title(const ComputeGraph& graph, const Command& command);

}  // namespace refrain::graph
