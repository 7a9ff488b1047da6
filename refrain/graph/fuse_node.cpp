#include "refrain/graph/fuse_node.h"

#include <fmt/format.h>

#include <algorithm>

#include "refrain/graph/lower.h"
#include "refrain/graph/set_call.h"

namespace refrain::graph {
namespace {

uint32_t input_of(const ComputeGraph& graph, const Command& contraction) {
  uint32_t found = kNone;
  for (uint32_t i = 0; i < contraction.op->args.size(); ++i) {
    const backend::ArgumentSpec& spec = contraction.op->args[i];
    if (!spec.rows || spec.units || spec.access != backend::Access::in ||
        !graph.bindings[contraction.bindings.first + i].bound())
      continue;
    if (found != kNone) return kNone;
    found = i;
  }
  return found;
}

}  // namespace

FuseNode fuse_node(const ComputeGraph& graph, const Command& command,
                   std::span<const backend::Kernel> kernels, const backend::DeviceInfo& info,
                   std::vector<backend::ArgumentInfo>& infos) {
  FuseNode node;
  if (command.op->units == nullptr) return node;
  node.rows = rows_of(graph, command);
  if (node.rows == 0) return node;
  const backend::OpCall call = op_call(graph, command, infos);
  node.iteration = command.op->iteration;
  node.units = command.op->units(call);
  node.flops = row_flops(call, static_cast<uint64_t>(node.rows));
  const backend::Kernel* kernel = select_kernel(call, kernels, info);
  if (kernel == nullptr) {
    node.refusal = "no kernel accepts it";
  } else if (!kernel->regions) {
    node.refusal = fmt::format("kernel {} computes whole tiles only", kernel->name);
  } else {
    const backend::Launch launch = kernel->launch(call, info);
    node.rows_per_block = std::max(launch.rows_per_block, 1u);
    node.granule = kernel->unit_granule;
    if (launch.rows != node.rows) {
      node.refusal = fmt::format("kernel {} walks {} rows, not the {} of its arguments", kernel->name,
                                 launch.rows, node.rows);
    }
  }
  if (node.iteration == backend::Iteration::contraction && node.units != 0)
    node.input = input_of(graph, command);
  return node;
}

}  // namespace refrain::graph
