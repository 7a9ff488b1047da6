#include "refrain/graph/expand.h"

namespace refrain::graph {

void expand(ComputeGraph& graph, Mode mode) {
  const DType activation = types_of(mode).activation;
  const auto resolve = [activation](DType& dtype) {
    if (dtype == DType::activation) dtype = activation;
  };
  for (TempInfo& temp : graph.temps) resolve(temp.dtype);
  for (backend::ArgumentInfo& info : graph.infos) resolve(info.dtype);
  for (Binding& binding : graph.bindings) {
    if (binding.temp != kNone) {
      const TempInfo& temp = graph.temps[binding.temp];
      binding.view.bytes = static_cast<size_t>(temp.shape.elements()) * size_bytes(temp.dtype);
    }
  }
  std::vector<backend::ArgumentInfo> infos;
  for (const Command& command : graph.commands) {
    if (command.fence()) continue;
    const backend::OpCall call = op_call(graph, command, infos);
    backend::check_dtypes(call);
    if (command.op->check != nullptr) command.op->check(call);
  }
}

}  // namespace refrain::graph
