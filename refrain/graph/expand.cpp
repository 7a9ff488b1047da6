#include "refrain/graph/expand.h"

#include <algorithm>
#include <span>

namespace refrain::graph {

void expand(ComputeGraph& graph, Mode mode) {
  const DType activation = types_of(mode).activation;
  const auto resolve = [activation](DType& dtype) {
    if (dtype == DType::activation) dtype = activation;
  };
  for (TempInfo& temp : graph.temps) resolve(temp.dtype);
  std::vector<bool> resolved(graph.infos.size());
  for (size_t i = 0; i < graph.infos.size(); ++i) {
    resolved[i] = graph.infos[i].dtype == DType::activation;
    resolve(graph.infos[i].dtype);
  }
  for (Binding& binding : graph.bindings) {
    if (binding.temp != kNone) {
      const TempInfo& temp = graph.temps[binding.temp];
      binding.view.bytes = static_cast<size_t>(temp.shape.elements()) * size_bytes(temp.dtype);
    }
  }
  std::vector<backend::ArgumentInfo> infos;
  for (const Command& command : graph.commands) {
    if (command.fence()) continue;
    // What has been recorded with all its dtypes has been checked.
    const auto bindings = std::span(graph.bindings).subspan(command.bindings.first, command.op->args.size());
    if (std::ranges::none_of(bindings, [&](const Binding& binding) { return resolved[binding.info]; }))
      continue;
    const backend::OpCall call = op_call(graph, command, infos);
    backend::check_dtypes(call);
    if (command.op->check != nullptr) command.op->check(call);
  }
}

}  // namespace refrain::graph
