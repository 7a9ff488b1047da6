// The edges of a plan's CUDA graph, and which of them are programmatic. Needs no CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::backend::cuda {

/// Command `to` begins after `from`: when that has completed or, by a programmatic edge, as early as `from` allows; `to`
/// then waits inside for the completion of `from`.
struct Edge {
  uint32_t from = 0;
  uint32_t to = 0;
  bool programmatic = false;
};

/// The edges of a plan, those into one command together and commands ascending: its deps, and for fences what makes them
/// one. `waits[i]`: command i runs a kernel of which every thread waits for the completion of what a programmatic edge
/// leads from, on every path, before it touches memory that is not sealed.
///
/// A command's latest dep leads in by a programmatic edge where both ends wait so; all other edges are full. Then, when a
/// command has completed, all its ancestors have.
std::vector<Edge> make_edges(const PlanData& plan, const std::vector<bool>& waits, bool all_full = false);

/// Throws DeviceError unless each command has at most one programmatic edge in, these lead between commands that wait, and
/// what the plan orders (by deps and by fences) is ordered by paths of edges. Written without make_edges.
void check_edges(const PlanData& plan, const std::vector<bool>& waits, const std::vector<Edge>& edges);

/// What has completed when a command begins, ahead of any wait inside it.
///
/// What leads in by a full edge has completed, and all before it. What leads in by a programmatic one has begun: with it
/// whatever had when it began; of one that lets its successors begin only once it has waited, all its ancestors.
class Completion {
 public:
  /// `late[i]`: command i is such a one.
  Completion(const std::vector<Edge>& edges, std::vector<bool> late);

  /// A bit for each command before `command`.
  std::vector<bool> at_begin(uint32_t command) const;

 private:
  std::vector<std::vector<Edge>> into_;
  std::vector<bool> late_;
};

/// True when `command` may load the bytes of `views` ahead of its wait: of the commands before it, each that writes some of
/// them has completed when it begins.
bool may_read_ahead(const PlanData& plan, const Completion& completion, uint32_t command,
                    const std::vector<BufferView>& views);

}  // namespace refrain::backend::cuda
