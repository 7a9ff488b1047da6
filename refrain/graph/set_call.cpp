#include "refrain/graph/set_call.h"

#include <map>
#include <tuple>

namespace refrain::graph {

std::vector<uint32_t> count_uses(const ComputeGraph& graph) {
  std::vector<uint32_t> uses(graph.temps.size());
  const auto count = [&](const Range& bindings) {
    for (uint32_t b = bindings.first; b < bindings.first + bindings.count; ++b) {
      if (graph.bindings[b].temp != kNone) ++uses[graph.bindings[b].temp];
    }
  };
  for (const Command& command : graph.commands) {
    count(command.bindings);
    for (uint32_t m = 0; m < command.members.count; ++m)
      count(graph.members[command.members.first + m].command.bindings);
  }
  return uses;
}

int64_t rows_of(const ComputeGraph& graph, const Command& command) {
  for (size_t i = 0; i < command.op->args.size(); ++i) {
    const Binding& binding = graph.bindings[command.bindings.first + i];
    const Shape& shape = graph.infos[binding.info].shape;
    if (command.op->args[i].rows && binding.bound() && shape.rank() > 0) return shape[0];
  }
  return 0;
}

bool same_live(const ComputeGraph& graph, const Command& a, const Command& b) {
  if (a.live != b.live) return false;
  if (!a.live) return true;
  const Binding& x = graph.bindings[a.bindings.first + a.bindings.count - 1];
  const Binding& y = graph.bindings[b.bindings.first + b.bindings.count - 1];
  return x.view.allocation == y.view.allocation && x.view.offset_bytes == y.view.offset_bytes;
}

backend::SetCall SetCalls::make(std::span<const Command* const> commands) {
  using Bytes = std::tuple<uint32_t, const backend::Allocation*, size_t, size_t>;
  std::map<Bytes, uint32_t> values;
  std::map<uint32_t, uint32_t> inside;  // bindings of the set to each temp
  infos_.resize(std::max(infos_.size(), commands.size()));
  args_.resize(std::max(args_.size(), commands.size()));
  members_.clear();
  for (size_t m = 0; m < commands.size(); ++m) {
    const Command& command = *commands[m];
    args_[m].clear();
    for (uint32_t i = 0; i < command.op->args.size(); ++i) {
      const Binding& binding = graph_.bindings[command.bindings.first + i];
      backend::SetArgument& arg = args_[m].emplace_back();
      if (!binding.bound()) continue;
      const Bytes bytes{binding.temp, binding.view.allocation, binding.view.offset_bytes, binding.view.bytes};
      arg.value = values.try_emplace(bytes, static_cast<uint32_t>(values.size())).first->second;
      if (binding.temp != kNone) ++inside[binding.temp];
    }
  }
  for (size_t m = 0; m < commands.size(); ++m) {
    for (uint32_t i = 0; i < args_[m].size(); ++i) {
      const uint32_t temp = graph_.bindings[commands[m]->bindings.first + i].temp;
      args_[m][i].outside = temp == kNone || inside[temp] != uses_[temp];
    }
    members_.push_back({op_call(graph_, *commands[m], infos_[m]), args_[m]});
  }
  return {members_, static_cast<uint32_t>(rows_of(graph_, *commands[0]))};
}

}  // namespace refrain::graph
