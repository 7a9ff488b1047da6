#include "refrain/graph/compute_graph.h"

namespace refrain::graph {

void clear(ComputeGraph& graph) {
  graph.commands.clear();
  graph.members.clear();
  graph.bindings.clear();
  graph.infos.clear();
  graph.temps.clear();
  graph.constants.clear();
  graph.labels.clear();
  graph.resources.clear();
  graph.owner = 0;
}

backend::OpCall op_call(const ComputeGraph& graph, const Command& command,
                        std::vector<backend::ArgumentInfo>& infos) {
  infos.clear();
  for (size_t i = 0; i < command.op->args.size(); ++i) {
    infos.push_back(graph.infos[graph.bindings[command.bindings.first + i].info]);
  }
  return {command.op, infos,
          std::span(graph.constants).subspan(command.constants.first, command.constants.count)};
}

}  // namespace refrain::graph
