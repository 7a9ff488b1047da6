#include "refrain/graph/lower.h"

#include <fmt/format.h>

#include "refrain/core/error.h"

namespace refrain::graph {
namespace {

std::string describe(const device::OpCall& call) {
  std::string text;
  for (size_t i = 0; i < call.args.size(); ++i) {
    const device::ArgumentInfo& arg = call.args[i];
    if (!arg.bound) continue;
    fmt::format_to(std::back_inserter(text), "{}{} {}{}{}", text.empty() ? "" : ", ", call.op->args[i].name,
                   name(arg.dtype), to_string(arg.shape),
                   arg.layout != nullptr ? fmt::format(" ({})", arg.layout->name) : "");
  }
  return text;
}

const device::Kernel& select(const device::OpCall& call, std::span<const device::Kernel> kernels,
                             const device::DeviceInfo& info) {
  for (const device::Kernel& kernel : kernels) {
    if (kernel.op == call.op && (kernel.needs & ~info.features) == 0 && kernel.accepts(call)) return kernel;
  }
  throw InvalidArgument(
      fmt::format("[{}] device {}: no kernel accepts {}", call.op->name, info.backend, describe(call)));
}

}  // namespace

LoweredGraph lower(const ComputeGraph& graph, std::span<const device::Kernel> kernels,
                   const device::DeviceInfo& info) {
  LoweredGraph lowered;
  lowered.constants = graph.constants;
  lowered.labels = graph.labels;
  lowered.commands.reserve(graph.commands.size());
  lowered.args.reserve(graph.bindings.size() + graph.commands.size());
  for (const TempInfo& temp : graph.temps) {
    lowered.temp_bytes.push_back(static_cast<size_t>(temp.shape.elements()) * size_bytes(temp.dtype));
  }

  std::vector<device::ArgumentInfo> infos;
  for (const Command& command : graph.commands) {
    device::Command& out = lowered.commands.emplace_back();
    out.label = command.label;
    out.args.first = static_cast<uint32_t>(lowered.args.size());
    if (command.op == nullptr) {
      out.kind = device::CommandKind::fence;
      continue;
    }
    const device::OpCall call = op_call(graph, command, infos);
    out.kernel = &select(call, kernels, info);
    out.launch = out.kernel->launch(call, info);
    out.constants = command.constants;
    for (uint32_t i = 0; i < command.bindings.count; ++i) {
      const Binding& binding = graph.bindings[command.bindings.first + i];
      lowered.args.push_back({binding.view, binding.temp, binding.access, binding.sealed});
    }
    if (command.live) out.live_arg = command.bindings.count - 1;
    if (out.launch.scratch_bytes != 0) {
      // One part a worker. Scratch is written, so it is in the write set like any other memory.
      const size_t bytes = out.launch.scratch_bytes * info.compute_units;
      out.scratch_arg = command.bindings.count;
      lowered.args.push_back({{nullptr, 0, bytes},
                              static_cast<uint32_t>(lowered.temp_bytes.size()),
                              device::Access::out,
                              false});
      lowered.temp_bytes.push_back(bytes);
      lowered.scratch_bytes += bytes;
    }
    out.args.count = static_cast<uint32_t>(lowered.args.size()) - out.args.first;
  }
  return lowered;
}

}  // namespace refrain::graph
