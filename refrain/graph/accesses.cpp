#include "refrain/graph/accesses.h"

namespace refrain::graph {
namespace {

// Ids of memories for the hazard pass. Allocation ids start at 1; each temp is a memory of its own until the
// arena is planned, and then the arena is one.
constexpr uint64_t kArenaMemory = 0;
constexpr uint64_t kFirstTempMemory = uint64_t{1} << 63;

/// `bound` is a Binding or a LoweredArgument. Nothing for what is not bound.
template <class Bound>
void append(AccessList& list, const Bound& bound, const MemoryPlan* memory) {
  if (bound.view.bytes == 0) return;
  RangeAccess range;
  range.begin = bound.view.offset_bytes;
  if (bound.temp == kNone) {
    range.memory = bound.view.allocation->id;
  } else if (memory == nullptr) {
    range.memory = kFirstTempMemory + bound.temp;
  } else {
    range.memory = kArenaMemory;
    range.begin += memory->offsets_bytes[bound.temp];
  }
  range.end = range.begin + bound.view.bytes;
  range.effect = backend::effect_of(bound.access);
  list.ranges.push_back(range);
}

}  // namespace

AccessList accesses(const ComputeGraph& graph) {
  AccessList list;
  list.commands.reserve(graph.commands.size());
  const auto append_bindings = [&](const Range& bindings) {
    for (uint32_t b = bindings.first; b < bindings.first + bindings.count; ++b)
      append(list, graph.bindings[b], nullptr);
  };
  for (const Command& command : graph.commands) {
    const auto first = static_cast<uint32_t>(list.ranges.size());
    append_bindings(command.bindings);
    for (uint32_t m = 0; m < command.members.count; ++m)
      append_bindings(graph.members[command.members.first + m].command.bindings);
    list.commands.push_back({{first, static_cast<uint32_t>(list.ranges.size()) - first}, command.fence()});
  }
  return list;
}

AccessList accesses(const LoweredGraph& graph, const MemoryPlan* memory) {
  AccessList list;
  list.commands.reserve(graph.commands.size());
  for (const backend::PlanCommand& command : graph.commands) {
    const auto first = static_cast<uint32_t>(list.ranges.size());
    for (uint32_t a = command.args.first; a < command.args.first + command.args.count; ++a)
      append(list, graph.args[a], memory);
    list.commands.push_back({{first, static_cast<uint32_t>(list.ranges.size()) - first},
                             command.kind == backend::CommandKind::fence});
  }
  return list;
}

}  // namespace refrain::graph
