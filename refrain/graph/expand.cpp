#include "refrain/graph/expand.h"

#include <algorithm>
#include <span>

namespace refrain::graph {
namespace {

std::span<const Binding> arguments(const ComputeGraph& graph, const Command& command) {
  return std::span(graph.bindings).subspan(command.bindings.first, command.op->args.size());
}

/// Calls that have been checked. Layers repeat what those before them have called, mostly in the same order.
class CheckedCalls {
 public:
  explicit CheckedCalls(const ComputeGraph& graph) : graph_(graph) {}

  bool contains(const Command& command) {
    if (next_ < calls_.size() && same(command, *calls_[next_])) {
      ++next_;
      return true;
    }
    const auto found =
        std::ranges::find_if(calls_, [&](const Command* call) { return same(command, *call); });
    next_ = static_cast<size_t>(found - calls_.begin()) + 1;
    return found != calls_.end();
  }
  void add(const Command& command) {
    if (calls_.size() < kMost) calls_.push_back(&command);
    next_ = calls_.size();
  }

 private:
  static constexpr size_t kMost = 64;  // graphs that do not repeat themselves are not searched for long

  /// But for the memory.
  bool same(const Command& a, const Command& b) const {
    if (a.op != b.op || a.constants.count != b.constants.count) return false;
    const auto constants = std::span(graph_.constants);
    return std::ranges::equal(arguments(graph_, a), arguments(graph_, b),
                              [&](const Binding& x, const Binding& y) { return same(x.info, y.info); }) &&
           std::ranges::equal(constants.subspan(a.constants.first, a.constants.count),
                              constants.subspan(b.constants.first, b.constants.count));
  }
  bool same(uint32_t a, uint32_t b) const {
    if (a == b) return true;
    const backend::ArgumentInfo &x = graph_.infos[a], &y = graph_.infos[b];
    return x.weight != nullptr && y.weight != nullptr && x.weight->format == y.weight->format &&
           x.layout == y.layout && x.dtype == y.dtype && x.shape == y.shape;
  }

  const ComputeGraph& graph_;
  std::vector<const Command*> calls_;
  size_t next_ = 0;
};

}  // namespace

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
  CheckedCalls checked(graph);
  for (const Command& command : graph.commands) {
    if (command.fence()) continue;
    // What has been recorded with all its dtypes has been checked.
    if (std::ranges::none_of(arguments(graph, command), [&](const Binding& b) { return resolved[b.info]; }) ||
        checked.contains(command)) {
      continue;
    }
    const backend::OpCall call = op_call(graph, command, infos);
    backend::check_dtypes(call);
    if (command.op->check != nullptr) command.op->check(call);
    checked.add(command);
  }
}

}  // namespace refrain::graph
