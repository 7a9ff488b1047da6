#include "refrain/graph/rewrite.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/graph/lower.h"

namespace refrain::graph {
namespace {

using backend::Access;
using backend::ArgumentSpec;
using backend::Replacement;
using backend::RewriteArgument;

bool same_bytes(const Binding& a, const Binding& b) {
  return a.bound() && b.bound() && a.temp == b.temp && a.view.allocation == b.view.allocation &&
         a.view.offset_bytes == b.view.offset_bytes && a.view.bytes == b.view.bytes;
}

/// One call, and the commands that a rewrite has made of it.
class Replacer {
 public:
  Replacer(ComputeGraph& graph, const Command& call, const backend::Rewrite& rewrite,
           const Replacement& replacement)
      : graph_(graph),
        call_(call),
        rewrite_(rewrite),
        replacement_(replacement),
        first_temp_(static_cast<uint32_t>(graph.temps.size())),
        first_info_(static_cast<uint32_t>(graph.infos.size())),
        value_written_(replacement.values.size()),
        argument_written_(call.op->args.size()) {}

  /// Appends the commands to the graph's.
  void append() {
    for (const Replacement::Value& value : replacement_.values) {
      graph_.temps.push_back({value.dtype, value.shape});
      graph_.infos.push_back({true, value.dtype, value.shape, nullptr, nullptr});
    }
    for (const Replacement::Command& made : replacement_.commands) append(made);
  }

 private:
  [[noreturn]] void broken(const backend::OpSchema& op, std::string_view what) const {
    throw Error(fmt::format("[plan] rewrite {} of {}: {}: {}", rewrite_.name, call_.op->name, op.name, what));
  }

  void append(const Replacement::Command& made) {
    const backend::OpSchema& op = *made.op;
    if (made.args.size() != op.args.size())
      broken(op, fmt::format("expected {} arguments, got {}", op.args.size(), made.args.size()));
    if (op.unknown_access) broken(op, "expected an op whose access is known");
    Command& command = graph_.commands.emplace_back();
    command.op = &op;
    command.label = call_.label;
    command.bindings.first = static_cast<uint32_t>(graph_.bindings.size());
    for (size_t i = 0; i < made.args.size(); ++i)
      graph_.bindings.push_back(bind(op, op.args[i], made.args[i]));
    for (size_t i = 0; i < made.args.size(); ++i) {
      if (op.args[i].access == Access::in) continue;
      if (made.args[i].kind == RewriteArgument::Kind::value) value_written_[made.args[i].index] = true;
      if (made.args[i].kind == RewriteArgument::Kind::of_call) argument_written_[made.args[i].index] = true;
    }
    command.live = call_.live && std::ranges::any_of(op.args, &ArgumentSpec::rows);
    if (command.live)
      graph_.bindings.push_back(Binding(graph_.bindings[call_.bindings.first + call_.bindings.count - 1]));
    command.bindings.count = static_cast<uint32_t>(graph_.bindings.size()) - command.bindings.first;
    command.constants = {static_cast<uint32_t>(graph_.constants.size()),
                         static_cast<uint32_t>(made.constants.size())};
    graph_.constants.insert(graph_.constants.end(), made.constants.begin(), made.constants.end());
    graph_.constants.resize(align_up(graph_.constants.size(), 16));
    check(command);
  }

  Binding bind(const backend::OpSchema& op, const ArgumentSpec& spec, const RewriteArgument& arg) const {
    Binding binding;
    if (arg.kind == RewriteArgument::Kind::value) {
      if (spec.access == Access::accumulate || (spec.access != Access::out && !value_written_.at(arg.index)))
        broken(op, fmt::format("{}: expected a value that has been written", spec.name));
      const Replacement::Value& value = replacement_.values[arg.index];
      if (size_bytes(value.dtype) == 0)
        broken(op, fmt::format("{}: expected a value of a dtype of its own, got {}", spec.name,
                               name(value.dtype)));
      binding.temp = first_temp_ + arg.index;
      binding.info = first_info_ + arg.index;
      binding.view.bytes = static_cast<size_t>(value.shape.elements()) * size_bytes(value.dtype);
    } else if (arg.kind == RewriteArgument::Kind::of_call) {
      binding = graph_.bindings[call_.bindings.first + arg.index];
      const Access of_call = call_.op->args[arg.index].access;
      const bool same = spec.access == of_call;
      const bool read_back = of_call == Access::out && argument_written_.at(arg.index);
      const bool within = of_call == Access::inout || read_back;
      if (!same && (!within || spec.access == Access::accumulate)) {
        broken(op, fmt::format("{}: expected to touch {} as the call does", spec.name,
                               call_.op->args[arg.index].name));
      }
    } else if (!spec.optional) {
      broken(op, fmt::format("{}: expected an argument, got nothing", spec.name));
    }
    binding.access = spec.access;
    return binding;
  }

  /// What an encoder checks of a call. All constants are the rewrite's to give.
  void check(const Command& command) const {
    std::vector<backend::ArgumentInfo> infos, infos_of_call;
    const backend::OpCall made = op_call(graph_, command, infos);
    if (command.constants.count != made.op->constants_bytes)
      broken(*made.op, fmt::format("expected {} bytes of constants, got {}", made.op->constants_bytes,
                                   command.constants.count));
    const int64_t rows = rows_of(op_call(graph_, call_, infos_of_call));
    if (command.live && rows_of(made) != rows)
      broken(*made.op, fmt::format("expected the call's {} rows, got {}", rows, rows_of(made)));
    try {
      backend::check_dtypes(made);
      if (made.op->check != nullptr) made.op->check(made);
    } catch (const InvalidArgument& error) {
      broken(*made.op, error.what());
    }
  }

  static int64_t rows_of(const backend::OpCall& call) {
    for (size_t i = 0; i < call.args.size(); ++i) {
      if (call.op->args[i].rows && call.args[i].bound && call.args[i].shape.rank() > 0)
        return call.args[i].shape[0];
    }
    return 0;
  }

  ComputeGraph& graph_;
  const Command& call_;
  const backend::Rewrite& rewrite_;
  const Replacement& replacement_;
  const uint32_t first_temp_, first_info_;
  std::vector<bool> value_written_, argument_written_;
};

class Rewriter {
 public:
  Rewriter(ComputeGraph& graph, const backend::KernelTables& tables, const backend::DeviceInfo& info,
           uint32_t splits)
      : graph_(graph), tables_(tables), info_(info), target_{info, splits} {}

  RewriteReport run() {
    const std::vector<Command> recorded = std::exchange(graph_.commands, {});
    graph_.commands.reserve(recorded.size());
    for (const Command& command : recorded) {
      if (!replace(command)) graph_.commands.push_back(command);
    }
    return std::move(report_);
  }

 private:
  bool replace(const Command& command) {
    for (const backend::Rewrite& rewrite : tables_.rewrites) {
      if (rewrite.op != command.op || command.fence()) continue;
      const backend::OpCall call = op_call(graph_, command, infos_);
      Replacement replacement;
      if (!rewrite.rewrite(call, target_, replacement)) continue;
      const backend::Kernel* kernel = select_kernel(call, tables_.kernels, info_);
      const size_t first = graph_.commands.size();
      const std::string call_name = name(command);
      std::string reason = works_in_place(command) ? "it works in place" : "";
      if (reason.empty()) {
        const Marks before = marks();
        Replacer(graph_, command, rewrite, replacement).append();
        if (kernel != nullptr) reason = other_class(*kernel, first);
        if (!reason.empty()) restore(before);
      }
      if (reason.empty()) {
        std::string text = fmt::format("{}: {} is", rewrite.name, call_name);
        for (size_t i = first; i < graph_.commands.size(); ++i)
          fmt::format_to(std::back_inserter(text), " #{} {}", i, graph_.commands[i].op->name);
        report_.rewrites.push_back(std::move(text));
        return true;
      }
      report_.misses.push_back(
          fmt::format("#{} {} is not rewritten by {}: {}", first, call_name, rewrite.name, reason));
      return false;
    }
    return false;
  }

  std::string name(const Command& command) const {
    const std::string& label = graph_.labels[command.label];
    return fmt::format("{}{}", command.op->name, label.empty() ? "" : fmt::format(" {:?}", label));
  }

  /// True when what the command writes is also another argument of it.
  bool works_in_place(const Command& command) const {
    const auto bindings = std::span(graph_.bindings).subspan(command.bindings.first, command.op->args.size());
    for (size_t i = 0; i < bindings.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (backend::conflict(bindings[i].access, bindings[j].access) && same_bytes(bindings[i], bindings[j]))
          return true;
      }
    }
    return false;
  }

  /// Why the kernels of the commands from `first` on may give other bits than `kernel`; empty when they do not.
  std::string other_class(const backend::Kernel& kernel, size_t first) {
    for (size_t i = first; i < graph_.commands.size(); ++i) {
      const backend::OpCall call = op_call(graph_, graph_.commands[i], infos_);
      const backend::Kernel* part = select_kernel(call, tables_.kernels, info_);
      if (part == nullptr) return fmt::format("no kernel accepts {}", call.op->name);
      if (part->numerics != kernel.numerics) {
        return fmt::format("kernel {} is of the class {:?}, {} of {:?}", kernel.name, kernel.numerics,
                           part->name, part->numerics);
      }
    }
    return {};
  }

  /// How much there is of everything that a replacement adds to.
  struct Marks {
    size_t commands, bindings, infos, temps, constants;
  };
  Marks marks() const {
    return {graph_.commands.size(), graph_.bindings.size(), graph_.infos.size(), graph_.temps.size(),
            graph_.constants.size()};
  }
  void restore(const Marks& before) {
    graph_.commands.resize(before.commands);
    graph_.bindings.resize(before.bindings);
    graph_.infos.resize(before.infos);
    graph_.temps.resize(before.temps);
    graph_.constants.resize(before.constants);
  }

  ComputeGraph& graph_;
  const backend::KernelTables& tables_;
  const backend::DeviceInfo& info_;
  const backend::RewriteTarget target_;
  std::vector<backend::ArgumentInfo> infos_;
  RewriteReport report_;
};

}  // namespace

RewriteReport rewrite(ComputeGraph& graph, const backend::KernelTables& tables,
                      const backend::DeviceInfo& info, uint32_t splits) {
  return Rewriter(graph, tables, info, splits).run();
}

}  // namespace refrain::graph
