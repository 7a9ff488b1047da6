#include "refrain/graph/fuse.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <set>

#include "refrain/graph/accesses.h"
#include "refrain/graph/contraction.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"

namespace refrain::graph {
namespace {

using device::Access;
using device::Iteration;

// One unit may hold so many operations, or a quarter of its group's: more, and the others would wait for the
// worker that has it.
constexpr uint64_t kUnitFlops = uint64_t{1} << 18;

/// What fusing asks of one command.
struct Node {
  Iteration iteration = Iteration::other;
  uint32_t units = 0;  ///< 0: never fused
  int64_t rows = 0;
  uint64_t flops = 0;   ///< of one row
  std::string refusal;  ///< why this device cannot have it in a group
  bool feeds_contraction =
      false;  ///< a reduction of whole rows that a contraction reads: left to be its prologue
  bool grouped = false;
};

enum class Conflict {
  none,
  local,  ///< both touch the value unit by unit
  other,
};

class Fuser {
 public:
  Fuser(ComputeGraph& graph, std::span<const device::Kernel> kernels, const device::DeviceInfo& info)
      : graph_(graph),
        count_(static_cast<uint32_t>(graph.commands.size())),
        order_(derive_order(accesses(graph))),
        relation_(order_, count_),
        nodes_(count_),
        uses_(graph.temps.size()) {
    for (const uint32_t level : order_.levels)
      report_.recorded_levels = std::max<size_t>(report_.recorded_levels, level);
    for (uint32_t i = 0; i < count_; ++i) describe(i, kernels, info);
    for (uint32_t i = 0; i < count_; ++i) {
      if (nodes_[i].iteration != Iteration::contraction) continue;
      const uint32_t source = source_of(i);
      if (source != kNone && whole_row(source)) nodes_[source].feeds_contraction = true;
    }
  }

  FuseReport run() {
    for (uint32_t i = 0; i < count_; ++i) {
      const Node& node = nodes_[i];
      if (node.iteration == Iteration::contraction && node.units != 0 && !node.grouped) form(i);
    }
    for (const auto& [candidate, text] : refused_) {
      if (!nodes_[candidate].grouped) report_.misses.push_back(text);
    }
    if (!groups_.empty()) rewrite();
    return std::move(report_);
  }

 private:
  struct Grown {
    std::vector<uint32_t> members;  ///< ascending
    uint32_t prologue = kNone;
  };

  const Binding& binding(uint32_t command, uint32_t index) const {
    return graph_.bindings[graph_.commands[command].bindings.first + index];
  }
  uint32_t binding_count(uint32_t command) const { return graph_.commands[command].bindings.count; }
  /// Null for the live count.
  const device::ArgumentSpec* spec(uint32_t command, uint32_t index) const {
    const auto& args = graph_.commands[command].op->args;
    return index < args.size() ? &args[index] : nullptr;
  }
  std::string name(uint32_t command) const {
    const Command& c = graph_.commands[command];
    const std::string& label = graph_.labels[c.label];
    return fmt::format("#{} {}{}{}{}", command, title(graph_, c), label.empty() ? "" : " \"", label,
                       label.empty() ? "" : "\"");
  }
  bool whole_row(uint32_t command) const {
    return nodes_[command].iteration == Iteration::row_reduction && nodes_[command].units == 1;
  }

  void describe(uint32_t index, std::span<const device::Kernel> kernels, const device::DeviceInfo& info) {
    const Command& command = graph_.commands[index];
    for (uint32_t b = 0; b < command.bindings.count; ++b) {
      const uint32_t temp = binding(index, b).temp;
      if (temp != kNone && (uses_[temp].empty() || uses_[temp].back() != index)) uses_[temp].push_back(index);
    }
    if (command.op == nullptr || command.op->units == nullptr) return;
    const device::OpCall call = op_call(graph_, command, infos_);
    Node& node = nodes_[index];
    for (size_t i = 0; i < call.args.size() && node.rows == 0; ++i) {
      if (command.op->args[i].rows && call.args[i].bound && call.args[i].shape.rank() > 0)
        node.rows = call.args[i].shape[0];
    }
    if (node.rows == 0) return;
    node.iteration = command.op->iteration;
    node.units = command.op->units(call);
    if (command.op->cost != nullptr)
      node.flops = command.op->cost(call).flops / static_cast<uint64_t>(node.rows);
    const device::Kernel* kernel = select_kernel(call, kernels, info);
    if (kernel == nullptr) {
      node.refusal = "no kernel accepts it";
    } else if (!kernel->regions) {
      node.refusal = fmt::format("kernel {} computes whole tiles only", kernel->name);
    }
  }

  /// The argument that a contraction reads whole rows of; kNone unless there is exactly one.
  uint32_t input_of(uint32_t contraction) const {
    uint32_t found = kNone;
    for (uint32_t b = 0; b < binding_count(contraction); ++b) {
      const device::ArgumentSpec* s = spec(contraction, b);
      if (s == nullptr || !s->rows || s->units || s->access != Access::in) continue;
      if (found != kNone) return kNone;
      found = b;
    }
    return found;
  }

  /// The only writer of a contraction's input, if it is a Temp that its writer only writes.
  uint32_t source_of(uint32_t contraction) const {
    const uint32_t input = input_of(contraction);
    if (input == kNone || binding(contraction, input).temp == kNone) return kNone;
    uint32_t source = kNone;
    for (const uint32_t user : uses_[binding(contraction, input).temp]) {
      for (uint32_t b = 0; b < binding_count(user); ++b) {
        const Binding& bound = binding(user, b);
        if (bound.temp != binding(contraction, input).temp || bound.access == Access::in) continue;
        if (source != kNone || bound.access != Access::out) return kNone;
        source = user;
      }
    }
    return source;
  }

  Conflict conflict(uint32_t a, uint32_t x, uint32_t b, uint32_t y) const {
    const Binding& first = binding(a, x);
    const Binding& second = binding(b, y);
    if (!first.bound() || !second.bound()) return Conflict::none;
    if (first.access == Access::status || second.access == Access::status) return Conflict::none;
    if (first.access == Access::in && second.access == Access::in) return Conflict::none;
    if (first.temp != second.temp) return Conflict::none;
    if (first.temp == kNone) {
      const bool apart = first.view.allocation->id != second.view.allocation->id ||
                         first.view.offset_bytes + first.view.bytes <= second.view.offset_bytes ||
                         second.view.offset_bytes + second.view.bytes <= first.view.offset_bytes;
      return apart ? Conflict::none : Conflict::other;
    }
    const auto by_unit = [&](uint32_t command, uint32_t index) {
      const device::ArgumentSpec* s = spec(command, index);
      return s != nullptr && s->rows && s->units &&
             graph_.infos[binding(command, index).info].shape[0] == nodes_[command].rows;
    };
    return by_unit(a, x) && by_unit(b, y) ? Conflict::local : Conflict::other;
  }

  /// Calls `each(x, y, conflict)` for the pairs of arguments of two commands that conflict.
  template <class Each>
  void each_conflict(uint32_t a, uint32_t b, Each each) const {
    for (uint32_t x = 0; x < binding_count(a); ++x) {
      for (uint32_t y = 0; y < binding_count(b); ++y) {
        if (const Conflict found = conflict(a, x, b, y); found != Conflict::none) each(x, y, found);
      }
    }
  }

  bool linked(uint32_t a, uint32_t b) const {
    bool found = false;
    each_conflict(a, b, [&](uint32_t, uint32_t, Conflict c) { found |= c == Conflict::local; });
    return found;
  }

  std::string_view argument(uint32_t command, uint32_t index) const {
    const device::ArgumentSpec* s = spec(command, index);
    return s == nullptr ? "live rows" : s->name;
  }

  /// Why these commands cannot be one; empty when they can.
  std::string refusal(const Grown& grown) const {
    const std::vector<uint32_t>& group = grown.members;
    for (const uint32_t member : group) {
      if (!nodes_[member].refusal.empty()) return nodes_[member].refusal;
      if (nodes_[member].rows != nodes_[group[0]].rows)
        return fmt::format("{} rows and {} rows", nodes_[group[0]].rows, nodes_[member].rows);
      if (!same_live(group[0], member)) return "another live count";
    }
    std::string reason;
    for (size_t i = 0; i < group.size() && reason.empty(); ++i) {
      for (size_t j = i + 1; j < group.size() && reason.empty(); ++j) {
        const uint32_t a = group[i], b = group[j];
        each_conflict(a, b, [&](uint32_t x, uint32_t y, Conflict c) {
          const bool prologue = a == grown.prologue || b == grown.prologue;
          if (prologue ? private_value(a, x, b, y, grown) : c == Conflict::local) return;
          reason = fmt::format("{}.{} and {}.{} share memory, not unit by unit", name(a), argument(a, x),
                               name(b), argument(b, y));
        });
      }
    }
    if (!reason.empty()) return reason;
    if (const uint32_t other = relation_.between(group); other != kNone)
      return fmt::format("{} lies between", name(other));
    return units_refusal(grown);
  }

  /// True for the prologue's output and the input of a contraction of the group.
  bool private_value(uint32_t a, uint32_t x, uint32_t b, uint32_t y, const Grown& grown) const {
    return a == grown.prologue && binding(a, x).access == Access::out &&
           nodes_[b].iteration == Iteration::contraction && y == input_of(b);
  }

  bool same_live(uint32_t a, uint32_t b) const {
    const Command &first = graph_.commands[a], &second = graph_.commands[b];
    if (first.live != second.live) return false;
    if (!first.live) return true;
    const Binding &x = binding(a, first.bindings.count - 1), &y = binding(b, second.bindings.count - 1);
    return x.view.allocation == y.view.allocation && x.view.offset_bytes == y.view.offset_bytes;
  }

  /// For each member the number of its component, in order of first members; of the prologue kNone.
  std::vector<uint32_t> components(const Grown& grown) const {
    const std::vector<uint32_t>& group = grown.members;
    std::vector<uint32_t> part(group.size());
    for (uint32_t i = 0; i < group.size(); ++i) {
      part[i] = i;
      if (group[i] == grown.prologue) continue;
      for (uint32_t j = 0; j < i; ++j) {
        if (group[j] == grown.prologue || part[j] == part[i] || !linked(group[j], group[i])) continue;
        const uint32_t old = std::max(part[i], part[j]), kept = std::min(part[i], part[j]);
        std::replace(part.begin(), part.begin() + i + 1, old, kept);
      }
    }
    std::map<uint32_t, uint32_t> numbers;
    for (uint32_t i = 0; i < group.size(); ++i) {
      if (group[i] == grown.prologue) {
        part[i] = kNone;
      } else {
        part[i] = numbers.try_emplace(part[i], static_cast<uint32_t>(numbers.size())).first->second;
      }
    }
    return part;
  }

  std::string units_refusal(const Grown& grown) const {
    const std::vector<uint32_t> part = components(grown);
    uint64_t group_flops = 0;
    std::map<uint32_t, uint32_t> least;  // of each component, the member with the fewest units
    std::map<uint32_t, uint64_t> flops;
    for (size_t i = 0; i < part.size(); ++i) {
      const uint32_t member = grown.members[i];
      group_flops += nodes_[member].flops;
      if (part[i] == kNone) continue;
      flops[part[i]] += nodes_[member].flops;
      uint32_t& found = least.try_emplace(part[i], member).first->second;
      if (nodes_[member].units < nodes_[found].units) found = member;
    }
    for (size_t i = 0; i < part.size(); ++i) {
      if (part[i] == kNone) continue;
      const uint32_t units = nodes_[least[part[i]]].units;
      const uint32_t member = grown.members[i];
      if (nodes_[member].units % units != 0) {
        return fmt::format("{} has {} units, which the {} of {} do not divide", name(member),
                           nodes_[member].units, units, name(least[part[i]]));
      }
      // A contraction that stays alone is cut as finely as before.
      if (flops[part[i]] / units > std::max(kUnitFlops, group_flops / 4))
        return fmt::format("one of {} units would be too much of the work", units);
    }
    return {};
  }

  static Grown with(const Grown& grown, uint32_t command) {
    Grown larger = grown;
    larger.members.insert(std::ranges::lower_bound(larger.members, command), command);
    return larger;
  }

  std::string title_of(const Grown& grown) const {
    std::vector<std::string_view> names;
    for (const uint32_t member : grown.members) names.push_back(graph_.commands[member].op->name);
    return device::joined(names);
  }

  std::string miss(uint32_t command, const Grown& grown, const std::string& reason) const {
    return fmt::format("{} does not join {} at #{}: {}", name(command), title_of(grown), grown.members[0],
                       reason);
  }

  void form(uint32_t first) {
    Grown grown{{first}, kNone};
    if (!nodes_[first].refusal.empty()) {
      report_.misses.push_back(fmt::format("{} forms no group: {}", name(first), nodes_[first].refusal));
      return;
    }
    const uint32_t input = input_of(first);
    if (input != kNone) add_siblings(grown, binding(first, input));
    add_prologue(grown);
    add_epilogues(grown);
    if (grown.members.size() < 2) return;

    for (const uint32_t member : grown.members) nodes_[member].grouped = true;
    relation_.contract(grown.members);
    std::string commands;
    for (const uint32_t member : grown.members) fmt::format_to(std::back_inserter(commands), " #{}", member);
    report_.fusions.push_back(title_of(grown) + ":" + commands);
    groups_.push_back(std::move(grown));
  }

  void add_siblings(Grown& grown, const Binding& input) {
    for (uint32_t i = grown.members[0] + 1; i < count_; ++i) {
      const Node& node = nodes_[i];
      if (node.iteration != Iteration::contraction || node.units == 0 || node.grouped) continue;
      const uint32_t index = input_of(i);
      if (index == kNone) continue;
      const Binding& other = binding(i, index);
      const bool same = other.temp == input.temp && other.view.allocation == input.view.allocation &&
                        other.view.offset_bytes == input.view.offset_bytes &&
                        other.view.bytes == input.view.bytes;
      if (!same) continue;
      Grown larger = with(grown, i);
      if (const std::string reason = refusal(larger); reason.empty()) {
        grown = std::move(larger);
      } else {
        report_.misses.push_back(miss(i, grown, reason));
      }
    }
  }

  void add_prologue(Grown& grown) {
    const uint32_t source = source_of(grown.members[0]);
    if (source == kNone || !whole_row(source) || nodes_[source].grouped) return;
    const uint32_t temp = binding(grown.members[0], input_of(grown.members[0])).temp;
    std::string reason;
    if (graph_.commands[source].op->args.size() > device::kMaxPrivateArgs)
      reason = "it has too many arguments";
    for (uint32_t b = 0; b < binding_count(source); ++b) {
      const Binding& bound = binding(source, b);
      if (bound.bound() && bound.access != Access::in && bound.access != Access::status && bound.temp != temp)
        reason = fmt::format("it writes {}, too", argument(source, b));
    }
    for (const uint32_t user : uses_[temp]) {
      if (user != source && !std::ranges::binary_search(grown.members, user))
        reason = fmt::format("{} reads its value, too", name(user));
    }
    for (const uint32_t user : uses_[temp]) {
      if (!reason.empty()) break;
      uint32_t bound = 0;
      for (uint32_t b = 0; b < binding_count(user); ++b) bound += binding(user, b).temp == temp;
      if (graph_.commands[user].op->args.size() > device::kMaxPrivateArgs)
        reason = fmt::format("{} has too many arguments", name(user));
      if (bound > 1) reason = fmt::format("{} uses its value twice", name(user));
    }
    Grown larger = with(grown, source);
    larger.prologue = source;
    if (reason.empty()) reason = refusal(larger);
    if (reason.empty()) {
      grown = std::move(larger);
    } else {
      refused_.emplace_back(source, miss(source, grown, reason));
    }
  }

  void add_epilogues(Grown& grown) {
    std::set<uint32_t> candidates;
    const auto add_users = [&](uint32_t member) {
      for (uint32_t b = 0; b < binding_count(member); ++b) {
        const Binding& bound = binding(member, b);
        if (bound.temp == kNone || bound.access == Access::in || member == grown.prologue) continue;
        for (const uint32_t user : uses_[bound.temp]) {
          if (user > member && !std::ranges::binary_search(grown.members, user)) candidates.insert(user);
        }
      }
    };
    for (const uint32_t member : grown.members) add_users(member);
    // In recorded order, so whatever could join before a candidate has been decided when it is its turn.
    while (!candidates.empty()) {
      const uint32_t candidate = *candidates.begin();
      candidates.erase(candidates.begin());
      const Node& node = nodes_[candidate];
      if (node.units == 0 || node.grouped || node.iteration == Iteration::contraction ||
          node.iteration == Iteration::other || node.feeds_contraction) {
        continue;
      }
      Grown larger = with(grown, candidate);
      if (const std::string reason = refusal(larger); !reason.empty()) {
        refused_.emplace_back(candidate, miss(candidate, grown, reason));
        continue;
      }
      grown = std::move(larger);
      add_users(candidate);
    }
  }

  /// Replaces the members of each group by one command, and brings all into order.
  void rewrite() {
    constexpr uint32_t kPlain = kNone;
    std::vector<uint32_t> group_of(count_, kPlain), place(count_);
    for (uint32_t g = 0; g < groups_.size(); ++g) {
      for (const uint32_t member : groups_[g].members) group_of[member] = g;
    }
    // A group stands where its first member stood, or as soon after as it can.
    for (uint32_t i = 0; i < count_; ++i)
      place[i] = group_of[i] == kPlain ? i : groups_[group_of[i]].members[0];
    std::vector<uint32_t> waiting(count_);
    std::vector<std::vector<uint32_t>> followers(count_);
    for (uint32_t i = 0; i < count_; ++i) {
      const Range& deps = order_.deps_of[i];
      for (uint32_t d = deps.first; d < deps.first + deps.count; ++d) {
        const uint32_t dep = place[order_.deps[d]];
        if (dep == place[i]) continue;
        followers[dep].push_back(place[i]);
        ++waiting[place[i]];
      }
    }
    std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ready;
    for (uint32_t i = 0; i < count_; ++i) {
      if (place[i] == i && waiting[i] == 0) ready.push(i);
    }
    std::vector<Command> commands;
    while (!ready.empty()) {
      const uint32_t next = ready.top();
      ready.pop();
      commands.push_back(group_of[next] == kPlain ? graph_.commands[next]
                                                  : command_of(groups_[group_of[next]]));
      for (const uint32_t follower : followers[next]) {
        if (--waiting[follower] == 0) ready.push(follower);
      }
    }
    graph_.commands = std::move(commands);
  }

  Command command_of(const Grown& grown) {
    Command command;
    command.label = graph_.commands[grown.members[0]].label;
    command.members = {static_cast<uint32_t>(graph_.members.size()),
                       static_cast<uint32_t>(grown.members.size())};
    const std::vector<uint32_t> part = components(grown);
    for (size_t i = 0; i < part.size(); ++i) {
      const uint32_t member = grown.members[i];
      const bool prologue = member == grown.prologue;
      graph_.members.push_back({graph_.commands[member],
                                prologue ? device::MemberRole::prologue : device::MemberRole::tile, part[i],
                                nodes_[member].units});
    }
    return command;
  }

  ComputeGraph& graph_;
  const uint32_t count_;
  const Order order_;
  Contraction relation_;
  std::vector<Node> nodes_;
  std::vector<std::vector<uint32_t>> uses_;  // of each temp: the commands bound to it, ascending
  std::vector<Grown> groups_;
  std::vector<std::pair<uint32_t, std::string>> refused_;  // reported if the command ends up in no group
  std::vector<device::ArgumentInfo> infos_;
  FuseReport report_;
};

}  // namespace

std::string title(const ComputeGraph& graph, const Command& command) {
  if (command.op != nullptr) return std::string(command.op->name);
  std::vector<std::string_view> names;
  for (uint32_t m = 0; m < command.members.count; ++m)
    names.push_back(graph.members[command.members.first + m].command.op->name);
  return names.empty() ? "fence" : device::joined(names);
}

FuseReport fuse(ComputeGraph& graph, std::span<const device::Kernel> kernels,
                const device::DeviceInfo& info) {
  return Fuser(graph, kernels, info).run();
}

}  // namespace refrain::graph
