#include "refrain/graph/lower.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/graph/set_call.h"

namespace refrain::graph {
namespace {

std::string describe(const backend::OpCall& call) {
  std::string text;
  for (size_t i = 0; i < call.args.size(); ++i) {
    const backend::ArgumentInfo& arg = call.args[i];
    if (!arg.bound) continue;
    fmt::format_to(std::back_inserter(text), "{}{} {}{}{}", text.empty() ? "" : ", ", call.op->args[i].name,
                   name(arg.dtype), to_string(arg.shape),
                   arg.layout != nullptr ? fmt::format(" ({})", arg.layout->name) : "");
  }
  return text;
}

// No memory has as much, and the sum over a group's members and all workers does not overflow.
constexpr size_t kMostScratchBytes = size_t{1} << 46;

constexpr uint32_t kMostWalkers = 65536;
constexpr size_t kMostTicketBytes = size_t{1} << 20;

// Operations of a tile for one row: what streams 65536 weights, some 10 us where they come from memory.
constexpr uint64_t kTileFlops = uint64_t{2} * 65536;

class Lowering {
 public:
  Lowering(const ComputeGraph& graph, std::span<const backend::Kernel> kernels,
           const backend::DeviceInfo& info)
      : graph_(graph), kernels_(kernels), info_(info), uses_(count_uses(graph)), sets_(graph, uses_) {
    lowered_.constants = graph.constants;
    lowered_.labels = graph.labels;
    lowered_.commands.reserve(graph.commands.size());
    lowered_.args.reserve(graph.bindings.size() + graph.commands.size());
    for (const TempInfo& temp : graph.temps) {
      lowered_.temp_bytes.push_back(static_cast<size_t>(temp.shape.elements()) * size_bytes(temp.dtype));
    }
  }

  LoweredGraph run() {
    for (const Command& command : graph_.commands) {
      backend::PlanCommand& out = lowered_.commands.emplace_back();
      out.label = command.label;
      out.args.first = static_cast<uint32_t>(lowered_.args.size());
      if (command.fence()) {
        out.kind = backend::CommandKind::fence;
        continue;
      }
      if (command.kernel != nullptr) {
        lower_set(command, out);
      } else if (command.group()) {
        lower_group(command, out);
      } else {
        lower_plain(command, out);
      }
      if (backend::scratch_bytes(out.launch, info_) != 0) add_scratch(out);
      if (out.launch.ticket_bytes != 0) {
        out.ticket_offset_bytes = lowered_.ticket_bytes;
        lowered_.ticket_bytes += align_up(out.launch.ticket_bytes, 64);
      }
      out.args.count = static_cast<uint32_t>(lowered_.args.size()) - out.args.first;
    }
    return std::move(lowered_);
  }

 private:
  const backend::Kernel& select(const backend::OpCall& call) const {
    if (const backend::Kernel* kernel = select_kernel(call, kernels_, info_)) return *kernel;
    throw InvalidArgument(
        fmt::format("[{}] device {}: no kernel accepts {}", call.op->name, info_.backend, describe(call)));
  }

  /// How `kernel` walks the call. Users' kernels say so, too, hence the checks.
  backend::Launch launch_of(const backend::Kernel& kernel, const backend::OpCall& call) const {
    const backend::Launch launch = checked(kernel.launch(call, info_), call.op->name, kernel.name);
    const size_t row_bytes = launch.row_scratch_bytes;
    expect((row_bytes != 0) == kernel.keeps_rows, call.op->name, kernel.name, "row_scratch_bytes",
           kernel.keeps_rows ? "some for rows_prologue" : "0 without rows_prologue", row_bytes);
    return launch;
  }

  static void expect(bool holds, std::string_view op, std::string_view kernel, const char* what,
                     const char* wanted, uint64_t got) {
    if (holds) return;
    throw InvalidArgument(
        fmt::format("[{}] kernel {}: launch: {}: expected {}, got {}", op, kernel, what, wanted, got));
  }

  static backend::Launch checked(backend::Launch launch, std::string_view op, std::string_view kernel) {
    const auto expect = [&](bool holds, const char* what, const char* wanted, uint64_t got) {
      Lowering::expect(holds, op, kernel, what, wanted, got);
    };
    expect(launch.rows_per_block != 0, "rows_per_block", "at least 1", 0);
    expect(launch.tiles_per_block != 0, "tiles_per_block", "at least 1", 0);
    const uint64_t tiles = uint64_t{ceil_div(launch.rows, launch.rows_per_block)} * launch.tiles_per_block;
    expect(tiles < UINT32_MAX - 1, "tiles", "fewer than 2^32 - 2", tiles);
    expect(launch.scratch_bytes <= kMostScratchBytes, "scratch_bytes", "what fits into memory",
           launch.scratch_bytes);
    expect(launch.row_scratch_bytes <= kMostScratchBytes / std::max(launch.rows, 1u), "row_scratch_bytes",
           "what fits into memory", launch.row_scratch_bytes);
    expect(launch.walkers <= kMostWalkers, "walkers", "at most 65536", launch.walkers);
    expect(launch.workspace_bytes <= kMostScratchBytes, "workspace_bytes", "what fits into memory",
           launch.workspace_bytes);
    expect(launch.ticket_bytes <= kMostTicketBytes, "ticket_bytes", "at most a MiB", launch.ticket_bytes);
    launch.scratch_bytes = align_up(launch.scratch_bytes, 64);
    return launch;
  }

  void lower_plain(const Command& command, backend::PlanCommand& out) {
    const backend::OpCall call = op_call(graph_, command, infos_);
    out.kernel = &select(call);
    lowered_.numerics.add(call, out.kernel->name, out.kernel->numerics, command.recorded);
    out.launch = launch_of(*out.kernel, call);
    out.constants = command.constants;
    for (uint32_t i = 0; i < command.bindings.count; ++i) add_argument(command, i);
    if (command.live) out.live_arg = command.bindings.count - 1;
  }

  void add_argument(const Command& command, uint32_t index) {
    const Binding& binding = graph_.bindings[command.bindings.first + index];
    lowered_.args.push_back({binding.view, binding.temp, binding.access, binding.sealed});
  }

  /// True when the member writes something, and nobody sees it.
  static bool elides_all(const backend::GroupKernel& kernel, const backend::SetCall& call, uint32_t member) {
    if (kernel.elides == nullptr) return false;
    const backend::OpCall& op_call = call.members[member].call;
    bool writes = false;
    for (uint32_t i = 0; i < op_call.args.size(); ++i) {
      if (op_call.op->args[i].access == backend::Access::in || !op_call.args[i].bound) continue;
      if (!kernel.elides(call, member, i)) return false;
      writes = true;
    }
    return writes;
  }

  /// The members of a group with a kernel. What it elides has no bytes, neither as argument nor as a temp.
  void lower_set(const Command& command, backend::PlanCommand& out) {
    const std::span<const Member> members =
        std::span(graph_.members).subspan(command.members.first, command.members.count);
    std::vector<const Command*> commands;
    for (const Member& member : members) commands.push_back(&member.command);
    const backend::SetCall call = sets_.make(commands);
    const backend::GroupKernel& kernel = *command.kernel;
    out.kind = backend::CommandKind::group_kernel;
    out.group_kernel = &kernel;
    out.placed = {static_cast<uint32_t>(lowered_.placed.size()), command.members.count};
    for (uint32_t m = 0; m < members.size(); ++m) {
      const Command& member = members[m].command;
      const auto count = static_cast<uint32_t>(member.op->args.size());
      lowered_.numerics.add(call.members[m].call, kernel.name, kernel.numerics_of(member.op->name),
                            member.recorded, elides_all(kernel, call, m));
      lowered_.placed.push_back({member.op,
                                 {static_cast<uint32_t>(lowered_.args.size()), count},
                                 member.constants,
                                 members[m].place});
      for (uint32_t i = 0; i < count; ++i) {
        add_argument(member, i);
        if (kernel.elides == nullptr || !kernel.elides(call, m, i)) continue;
        LoweredArgument& argument = lowered_.args.back();
        if (call.members[m].args[i].outside || argument.temp == kNone) {
          throw Error(fmt::format("[plan] kernel {} elides {}.{}, which others touch", kernel.name,
                                  member.op->name, member.op->args[i].name));
        }
        lowered_.temp_bytes[argument.temp] = 0;
        argument.view = {};
        argument.temp = kNone;
      }
    }
    out.launch = checked(kernel.launch(call, info_), members[0].command.op->name, kernel.name);
    if (!members[0].command.live) return;
    out.live_arg = static_cast<uint32_t>(lowered_.args.size()) - out.args.first;
    add_argument(members[0].command, members[0].command.bindings.count - 1);
  }

  /// What one component asks of its tiles.
  struct Part {
    uint32_t units = 0;    ///< of a row; the least of its members'
    uint64_t flops = 0;    ///< of a row
    uint64_t granule = 1;  ///< units that its kernels do best in multiples of
  };

  void lower_group(const Command& command, backend::PlanCommand& out) {
    backend::FusedGroup group;
    group.members = {static_cast<uint32_t>(lowered_.members.size()), command.members.count};
    group.components.first = static_cast<uint32_t>(lowered_.components.size());
    const std::span<const Member> members =
        std::span(graph_.members).subspan(command.members.first, command.members.count);
    std::vector<Part> parts;
    for (const Member& member : members) {
      if (member.role == backend::MemberRole::prologue) continue;
      if (parts.size() <= member.component) parts.resize(member.component + 1);
      uint32_t& units = parts[member.component].units;
      units = units == 0 ? member.units : std::min(units, member.units);
    }

    const uint32_t value = private_temp(members);
    uint32_t rows_per_block = UINT32_MAX;
    for (const Member& member : members) {
      const backend::OpCall call = op_call(graph_, member.command, infos_);
      backend::FusedMember& lowered = lowered_.members.emplace_back();
      lowered.kernel = &select(call);
      lowered_.numerics.add(call, lowered.kernel->name, lowered.kernel->numerics, member.command.recorded);
      lowered.constants = member.command.constants;
      lowered.role = member.role;
      lowered.component = member.component;
      lowered.units = member.units;
      lowered.args = {static_cast<uint32_t>(lowered_.args.size()),
                      static_cast<uint32_t>(member.command.op->args.size())};
      for (uint32_t i = 0; i < lowered.args.count; ++i) {
        add_argument(member.command, i);
        LoweredArgument& argument = lowered_.args.back();
        if (value == kNone || argument.temp != value) continue;
        lowered.private_arg = i;
        argument.view = {};
        argument.temp = kNone;
      }
      const backend::Launch launch = launch_of(*lowered.kernel, call);
      lowered.row_scratch_bytes = launch.row_scratch_bytes;
      lowered.scratch_bytes = launch.scratch_bytes;
      if (member.command.op->iteration == backend::Iteration::contraction) {
        // Rows that share one pass over the weights.
        rows_per_block = std::min(rows_per_block, launch.rows_per_block);
      }
      out.launch.rows = launch.rows;
      if (member.role == backend::MemberRole::prologue) continue;
      Part& part = parts[member.component];
      const uint32_t ratio = member.units / part.units;
      part.granule = std::lcm(part.granule, uint64_t{ceil_div(lowered.kernel->unit_granule, ratio)});
      part.flops += row_flops(call, launch.rows);
    }
    out.launch.rows_per_block = std::min(rows_per_block, out.launch.rows);
    if (value != kNone) group.value_row_bytes = lowered_.temp_bytes[value] / out.launch.rows;
    add_tiles(parts, group, out.launch);
    place_scratch(group, out.launch);
    if (members[0].command.live) {
      out.live_arg = static_cast<uint32_t>(lowered_.args.size()) - out.args.first;
      add_argument(members[0].command, members[0].command.bindings.count - 1);
    }
    out.kind = backend::CommandKind::fused_group;
    out.group = static_cast<uint32_t>(lowered_.groups.size());
    lowered_.groups.push_back(group);
    if (value != kNone) lowered_.temp_bytes[value] = 0;  // it lies in scratch
  }

  /// The value of the group's prologue.
  uint32_t private_temp(std::span<const Member> members) const {
    for (const Member& member : members) {
      if (member.role != backend::MemberRole::prologue) continue;
      for (uint32_t i = 0; i < member.command.bindings.count; ++i) {
        const Binding& binding = graph_.bindings[member.command.bindings.first + i];
        if (binding.access == backend::Access::out) return binding.temp;
      }
    }
    return kNone;
  }

  /// Cuts each component into tiles.
  void add_tiles(const std::vector<Part>& parts, backend::FusedGroup& group, backend::Launch& launch) {
    launch.tiles_per_block = 0;
    for (const Part& part : parts) {
      backend::FusedComponent component;
      component.units = part.units;
      component.units_per_tile = units_per_tile(part.units, part.flops, part.granule, launch.rows_per_block);
      launch.tiles_per_block += ceil_div(component.units, component.units_per_tile);
      lowered_.components.push_back(component);
      ++group.components.count;
    }
  }

  /// The parts of a worker's scratch: see backend::FusedGroup.
  void place_scratch(const backend::FusedGroup& group, backend::Launch& launch) {
    const auto rows_bytes = [&](size_t row_bytes) {
      return backend::kGroupHeaderBytes + align_up(launch.rows_per_block * row_bytes, 64);
    };
    size_t end = group.value_row_bytes != 0 ? rows_bytes(group.value_row_bytes) : 0;
    const std::span<backend::FusedMember> members = std::span(lowered_.members).subspan(group.members.first);
    for (backend::FusedMember& member : members) {
      if (member.row_scratch_bytes == 0) continue;
      member.scratch_bytes = rows_bytes(member.row_scratch_bytes);
      member.scratch_offset_bytes = end;
      end += member.scratch_bytes;
    }
    size_t shared = 0;
    for (backend::FusedMember& member : members) {
      if (member.row_scratch_bytes != 0 || member.scratch_bytes == 0) continue;
      member.scratch_offset_bytes = end;
      shared = std::max(shared, member.scratch_bytes);
    }
    launch.scratch_bytes = end + shared;
  }

  void add_scratch(backend::PlanCommand& out) {
    // One part a walker, then the workspace. Scratch is written, so it is in the write set like any other memory.
    const size_t bytes = backend::scratch_bytes(out.launch, info_);
    out.scratch_arg = static_cast<uint32_t>(lowered_.args.size()) - out.args.first;
    lowered_.args.push_back({{nullptr, 0, bytes},
                             static_cast<uint32_t>(lowered_.temp_bytes.size()),
                             backend::Access::out,
                             false});
    lowered_.temp_bytes.push_back(bytes);
    lowered_.scratch_bytes += bytes;
  }

  const ComputeGraph& graph_;
  const std::span<const backend::Kernel> kernels_;
  const backend::DeviceInfo& info_;
  const std::vector<uint32_t> uses_;
  SetCalls sets_;
  LoweredGraph lowered_;
  std::vector<backend::ArgumentInfo> infos_;
};

}  // namespace

const backend::Kernel* select_kernel(const backend::OpCall& call, std::span<const backend::Kernel> kernels,
                                     const backend::DeviceInfo& info) {
  for (const backend::Kernel& kernel : kernels) {
    if (kernel.op == call.op && (kernel.needs & ~info.features) == 0 && kernel.accepts(call)) return &kernel;
  }
  return nullptr;
}

uint64_t row_flops(const backend::OpCall& call, uint64_t rows) {
  if (call.op->cost != nullptr) return call.op->cost(call).flops / rows;
  uint64_t flops = 0;
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (!call.args[i].bound) continue;
    const auto elements = static_cast<uint64_t>(call.args[i].shape.elements());
    flops += call.op->args[i].rows ? elements / rows : 2 * elements;
  }
  return flops;
}

uint32_t units_per_tile(uint32_t units, uint64_t flops, uint64_t granule, uint32_t rows_per_block) {
  // More rows give each weight more to do; as the products on their own have it.
  const uint64_t passes = ceil_div(rows_per_block, 16u);
  const uint64_t unit_flops = std::max<uint64_t>(flops / units * passes, 1);
  const uint64_t nearest = (kTileFlops + unit_flops / 2) / unit_flops;
  const uint64_t wanted = ceil_div(std::max<uint64_t>(nearest, 1), granule) * granule;
  return static_cast<uint32_t>(std::min<uint64_t>(wanted, units));
}

LoweredGraph lower(const ComputeGraph& graph, std::span<const backend::Kernel> kernels,
                   const backend::DeviceInfo& info) {
  return Lowering(graph, kernels, info).run();
}

}  // namespace refrain::graph
