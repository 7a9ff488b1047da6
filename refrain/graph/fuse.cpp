#include "refrain/graph/fuse.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/graph/accesses.h"
#include "refrain/graph/fuse_node.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/merged_order.h"
#include "refrain/graph/set_call.h"

namespace refrain::graph {
namespace {

using backend::Access;
using backend::Iteration;

// One unit may hold so many operations, or a quarter of its group's: more, and the others would wait for the
// worker that has it.
constexpr uint64_t kUnitFlops = uint64_t{1} << 18;

// What recomputing a prologue may cost, as a part of its group's work.
constexpr uint64_t kPrologueShare = 16;

// A group has so many members at most, and tries so many siblings and so many epilogues: what it costs to form one
// does not grow with the recording. Models have up to a dozen.
constexpr size_t kMostMembers = 64;
// How far a command is brought: several layers, so that products of one input meet across them.
constexpr size_t kReach = 1024;

/// A value and the commands bound to it.
struct Value {
  std::vector<uint32_t> users;  ///< ascending
  uint32_t writer = kNone;      ///< the only one, if it only writes
  bool written = false;
};

enum class Conflict {
  none,
  local,  ///< both touch the value unit by unit
  other,
};

class Fuser {
 public:
  Fuser(ComputeGraph& graph, std::span<const backend::Kernel> kernels, const backend::DeviceInfo& info)
      : graph_(graph),
        count_(static_cast<uint32_t>(graph.commands.size())),
        order_(derive_order(accesses(graph), /*reduced=*/false)),
        contraction_(order_),
        workers_(info.compute_units),
        most_rows_(info.most_fused_rows),
        nodes_(count_),
        values_(graph.temps.size()) {
    for (const uint32_t level : order_.levels)
      report_.recorded_levels = std::max<size_t>(report_.recorded_levels, level);
    for (uint32_t i = 0; i < count_; ++i) {
      describe(i, kernels, info);
      nodes_[i].fences = fences_.size();
      if (graph.commands[i].fence()) fences_.push_back(i);
    }
    for (uint32_t i = 0; i < count_; ++i) {
      if (nodes_[i].input == kNone) continue;
      readers_[key(binding(i, nodes_[i].input))].push_back(i);
      const uint32_t source = source_of(i);
      if (source != kNone && whole_row(source)) nodes_[source].feeds_contraction = true;
    }
  }

  FuseReport run() {
    for (uint32_t i = 0; i < count_; ++i) {
      const FuseNode& node = nodes_[i];
      if (node.iteration == Iteration::contraction && node.units != 0 && !node.grouped) form(i);
    }
    for (const auto& [candidate, text] : refused_) {
      // A product has missed its siblings, even if it has a group of its own.
      const FuseNode& node = nodes_[candidate];
      if (!node.grouped || node.iteration == Iteration::contraction) report_.misses.push_back(text);
    }
    if (!groups_.empty()) rewrite();
    return std::move(report_);
  }

 private:
  struct Member {
    uint32_t command = kNone;
    uint32_t part = kNone;  ///< members that hand values on have the same; the prologue has none
  };
  struct Grown {
    std::vector<Member> members;  ///< in recorded order
    uint32_t prologue = kNone;
    uint64_t flops = 0;

    uint32_t first() const { return members[0].command; }
    bool full() const { return members.size() == kMostMembers; }
    bool has(uint32_t command) const {
      return std::ranges::binary_search(members, command, {}, &Member::command);
    }
  };
  /// Bytes that contractions may read in common.
  using Key = std::tuple<uint32_t, const backend::Allocation*, size_t, size_t>;
  static Key key(const Binding& input) {
    return {input.temp, input.view.allocation, input.view.offset_bytes, input.view.bytes};
  }

  const Binding& binding(uint32_t command, uint32_t index) const {
    return graph_.bindings[graph_.commands[command].bindings.first + index];
  }
  uint32_t binding_count(uint32_t command) const { return graph_.commands[command].bindings.count; }
  /// Null for the live count.
  const backend::ArgumentSpec* spec(uint32_t command, uint32_t index) const {
    const auto& args = graph_.commands[command].op->args;
    return index < args.size() ? &args[index] : nullptr;
  }
  std::string name(uint32_t command) const {
    const Command& c = graph_.commands[command];
    const std::string& label = graph_.labels[c.label];
    return fmt::format("#{} {}{}", command, title(graph_, c),
                       label.empty() ? "" : fmt::format(" {:?}", label));
  }
  bool whole_row(uint32_t command) const {
    return nodes_[command].iteration == Iteration::row_reduction && nodes_[command].units == 1;
  }

  void add_uses(uint32_t index, const Command& command) {
    for (uint32_t b = 0; b < command.bindings.count; ++b) {
      const Binding& bound = graph_.bindings[command.bindings.first + b];
      if (bound.temp == kNone) continue;
      Value& value = values_[bound.temp];
      if (value.users.empty() || value.users.back() != index) value.users.push_back(index);
      if (bound.access == Access::in) continue;
      value.writer = value.written || bound.access != Access::out ? kNone : index;
      value.written = true;
    }
  }

  void describe(uint32_t index, std::span<const backend::Kernel> kernels, const backend::DeviceInfo& info) {
    const Command& command = graph_.commands[index];
    add_uses(index, command);
    for (uint32_t m = 0; m < command.members.count; ++m)
      add_uses(index, graph_.members[command.members.first + m].command);
    if (command.op != nullptr) nodes_[index] = fuse_node(graph_, command, kernels, info, infos_);
  }

  /// The only writer of a contraction's input, if it is a Temp that its writer only writes.
  uint32_t source_of(uint32_t contraction) const {
    const uint32_t input = nodes_[contraction].input;
    if (input == kNone || binding(contraction, input).temp == kNone) return kNone;
    return values_[binding(contraction, input).temp].writer;
  }

  Conflict conflict(uint32_t a, uint32_t x, uint32_t b, uint32_t y) const {
    const Binding& first = binding(a, x);
    const Binding& second = binding(b, y);
    if (!first.bound() || !second.bound()) return Conflict::none;
    if (!backend::conflict(first.access, second.access)) return Conflict::none;
    if (first.temp != second.temp) return Conflict::none;
    if (first.temp == kNone) {
      const bool apart = first.view.allocation->id != second.view.allocation->id ||
                         first.view.offset_bytes + first.view.bytes <= second.view.offset_bytes ||
                         second.view.offset_bytes + second.view.bytes <= first.view.offset_bytes;
      return apart ? Conflict::none : Conflict::other;
    }
    const auto by_unit = [&](uint32_t command, uint32_t index) {
      const backend::ArgumentSpec* s = spec(command, index);
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

  std::string_view argument(uint32_t command, uint32_t index) const {
    const backend::ArgumentSpec* s = spec(command, index);
    return s == nullptr ? "live rows" : s->name;
  }

  /// Makes `candidate` a member. Returns why it cannot be one; empty when it is.
  std::string join(Grown& grown, uint32_t candidate, bool prologue = false) {
    const FuseNode& node = nodes_[candidate];
    const uint32_t first = grown.first();
    if (!node.refusal.empty()) return node.refusal;
    if (grown.full()) return fmt::format("it has {} members", kMostMembers);
    if (node.rows != nodes_[first].rows)
      return fmt::format("{} rows and {} rows", nodes_[first].rows, node.rows);
    if (!same_live(graph_, graph_.commands[first], graph_.commands[candidate])) return "another live count";
    std::set<uint32_t> parts;  // that the candidate would join
    for (const Member& member : grown.members) {
      const uint32_t a = std::min(member.command, candidate), b = std::max(member.command, candidate);
      std::string reason;
      each_conflict(a, b, [&](uint32_t x, uint32_t y, Conflict c) {
        if (prologue ? private_value(candidate, a, x, b, y)
                     : c == Conflict::local && member.command != grown.prologue) {
          parts.insert(member.part);
        } else {
          reason = fmt::format("{}.{} and {}.{} share memory, not unit by unit", name(a), argument(a, x),
                               name(b), argument(b, y));
        }
      });
      if (!reason.empty()) return reason;
    }
    if (prologue) parts.clear();
    if (std::string reason = units_refusal(grown, candidate, parts); !reason.empty()) return reason;
    const size_t fences = std::min(node.fences, nodes_[first].fences);
    if (std::max(node.fences, nodes_[first].fences) != fences)
      return fmt::format("{} lies between", name(fences_[fences]));
    if (contraction_.distance(first, candidate) > kReach)
      return fmt::format("it is more than {} commands away", kReach);
    if (const uint32_t other = contraction_.join(first, candidate); other != kNone)
      return fmt::format("{} lies between", name(other));

    const Member member{candidate, prologue ? kNone : candidate};
    for (Member& other : grown.members) {
      if (parts.contains(other.part)) other.part = member.part;
    }
    grown.members.insert(std::ranges::lower_bound(grown.members, candidate, {}, &Member::command), member);
    grown.flops += node.flops;
    if (prologue) grown.prologue = candidate;
    return {};
  }

  /// True for the output of `prologue` and the input of a contraction.
  bool private_value(uint32_t prologue, uint32_t a, uint32_t x, uint32_t b, uint32_t y) const {
    return a == prologue && binding(a, x).access == Access::out && y == nodes_[b].input;
  }

  /// Why `parts` and the candidate cannot share tiles.
  std::string units_refusal(const Grown& grown, uint32_t candidate, const std::set<uint32_t>& parts) const {
    if (parts.empty()) return {};  // a contraction that stays alone is cut as finely as before
    std::vector<uint32_t> together{candidate};
    for (const Member& member : grown.members) {
      if (parts.contains(member.part)) together.push_back(member.command);
    }
    std::ranges::sort(together);
    const uint32_t least =
        *std::ranges::min_element(together, {}, [&](uint32_t member) { return nodes_[member].units; });
    const uint32_t units = nodes_[least].units;
    uint64_t flops = 0;
    for (const uint32_t member : together) {
      flops += nodes_[member].flops;
      if (nodes_[member].units % units == 0) continue;
      return fmt::format("{} has {} units, which the {} of {} do not divide", name(member),
                         nodes_[member].units, units, name(least));
    }
    if (flops / units > std::max(kUnitFlops, (grown.flops + nodes_[candidate].flops) / 4))
      return fmt::format("one of {} units would be too much of the work", units);
    return {};
  }

  std::string title_of(const Grown& grown) const {
    std::vector<std::string_view> names;
    for (const Member& member : grown.members) names.push_back(graph_.commands[member.command].op->name);
    return backend::joined(names);
  }

  /// Notes the first reason for which a command was refused.
  void refuse(uint32_t command, const Grown& grown, const std::string& reason) {
    if (std::exchange(nodes_[command].refused, true)) return;
    refused_.emplace_back(command, fmt::format("{} does not join {} at #{}: {}", name(command),
                                               title_of(grown), grown.first(), reason));
  }

  void form(uint32_t first) {
    FuseNode& node = nodes_[first];
    if (node.refusal.empty() && node.rows > most_rows_)
      node.refusal = fmt::format("it has {} rows, and groups at most {} here", node.rows, most_rows_);
    if (!node.refusal.empty()) {
      report_.misses.push_back(fmt::format("{} forms no group: {}", name(first), node.refusal));
      return;
    }
    Grown grown{{{first, first}}, kNone, node.flops};
    if (node.input != kNone) {
      add_siblings(grown);
      add_prologue(grown);
    }
    add_epilogues(grown);
    if (grown.members.size() < 2) return;

    std::string commands;
    for (const Member& member : grown.members) {
      nodes_[member.command].grouped = true;
      fmt::format_to(std::back_inserter(commands), " #{}", member.command);
    }
    report_.fusions.push_back(title_of(grown) + ":" + commands);
    groups_.emplace(grown.first(), std::move(grown));
  }

  void add_siblings(Grown& grown) {
    const uint32_t first = grown.first();
    const std::vector<uint32_t>& siblings = readers_.at(key(binding(first, nodes_[first].input)));
    size_t tries = 0;
    for (auto next = std::ranges::upper_bound(siblings, first); next != siblings.end(); ++next) {
      if (nodes_[*next].grouped) continue;
      const std::string reason = try_join(grown, *next, tries);
      if (reason.empty()) continue;
      refuse(*next, grown, reason);
      if (grown.full() || tries > kMostMembers || nodes_[*next].fences != nodes_[first].fences) break;
    }
  }

  /// join() for one of at most kMostMembers candidates; the next one is refused for that.
  std::string try_join(Grown& grown, uint32_t candidate, size_t& tries) {
    if (++tries > kMostMembers) return fmt::format("{} others have been tried", kMostMembers);
    return join(grown, candidate);
  }

  void add_prologue(Grown& grown) {
    const uint32_t source = source_of(grown.first());
    if (source == kNone || !whole_row(source) || nodes_[source].grouped) return;
    std::string reason = private_refusal(grown, source);
    if (reason.empty()) reason = cost_refusal(grown, source);
    if (reason.empty()) reason = join(grown, source, /*prologue=*/true);
    if (!reason.empty()) refuse(source, grown, reason);
  }

  /// Why the value of `source` cannot do without memory.
  std::string private_refusal(const Grown& grown, uint32_t source) const {
    const uint32_t temp = binding(grown.first(), nodes_[grown.first()].input).temp;
    for (uint32_t b = 0; b < binding_count(source); ++b) {
      const Binding& bound = binding(source, b);
      if (bound.bound() && bound.access != Access::in && bound.access != Access::accumulate &&
          bound.temp != temp)
        return fmt::format("it writes {}, too", argument(source, b));
    }
    for (const uint32_t user : values_[temp].users) {
      if (user != source && !grown.has(user)) return fmt::format("{} reads its value, too", name(user));
      if (graph_.commands[user].op->args.size() > backend::kMaxPrivateArgs)
        return fmt::format("{} has too many arguments", name(user));
    }
    return {};
  }

  /// Why `source` costs too much when each worker that has a tile of a block of rows computes it.
  std::string cost_refusal(const Grown& grown, uint32_t source) const {
    auto rows = static_cast<uint32_t>(std::min<int64_t>(nodes_[source].rows, UINT32_MAX));
    for (const Member& member : grown.members) rows = std::min(rows, nodes_[member.command].rows_per_block);
    uint64_t tiles = 0;
    for (const Member& member : grown.members) {
      const FuseNode& node = nodes_[member.command];
      tiles += ceil_div(node.units, units_per_tile(node.units, node.flops, node.granule, rows));
    }
    const uint64_t times = std::min<uint64_t>(workers_, tiles);
    const uint64_t flops = nodes_[source].flops * times;
    if (times <= 1 || flops <= grown.flops / kPrologueShare) return {};
    return fmt::format("{} workers would compute it, {} operations a row for a group of {}", times, flops,
                       grown.flops);
  }

  /// True for what may take on the values of a product.
  bool takes_on(uint32_t command) const {
    const FuseNode& node = nodes_[command];
    return node.units != 0 && !node.grouped && node.iteration != Iteration::contraction &&
           node.iteration != Iteration::other && !node.feeds_contraction;
  }

  void add_epilogues(Grown& grown) {
    std::set<uint32_t> candidates;
    const auto add_users = [&](uint32_t member) {
      for (uint32_t b = 0; b < binding_count(member); ++b) {
        const Binding& bound = binding(member, b);
        if (bound.temp == kNone || bound.access == Access::in || member == grown.prologue) continue;
        const std::vector<uint32_t>& users = values_[bound.temp].users;
        auto next = std::ranges::upper_bound(users, member);
        const auto left = static_cast<size_t>(users.end() - next);
        const auto far =
            next + static_cast<ptrdiff_t>(std::min(left, kReach));  // from there on, out of reach
        for (size_t found = 0; next != far && found <= kMostMembers; ++next) {
          if (!takes_on(*next)) continue;
          candidates.insert(*next);
          ++found;
        }
      }
    };
    for (const Member& member : grown.members) add_users(member.command);
    // In recorded order, so whatever could join before a candidate has been decided when it is its turn.
    size_t tries = 0;
    while (!candidates.empty()) {
      const uint32_t candidate = *candidates.begin();
      candidates.erase(candidates.begin());
      if (grown.has(candidate)) continue;
      if (const std::string reason = try_join(grown, candidate, tries); !reason.empty()) {
        refuse(candidate, grown, reason);
        if (grown.full() || tries > kMostMembers) break;
      } else {
        add_users(candidate);
      }
    }
  }

  /// Replaces the members of each group by one command, and brings all into order.
  void rewrite() {
    std::vector<Command> commands;
    for (const uint32_t first : contraction_.sequence()) {
      const auto found = groups_.find(first);
      commands.push_back(found == groups_.end() ? graph_.commands[first] : command_of(found->second));
    }
    graph_.commands = std::move(commands);
  }

  Command command_of(const Grown& grown) {
    Command command;
    command.label = graph_.commands[grown.first()].label;
    command.members = {static_cast<uint32_t>(graph_.members.size()),
                       static_cast<uint32_t>(grown.members.size())};
    std::map<uint32_t, uint32_t> components;  // of parts, numbered in order of their first members
    for (const Member& member : grown.members) {
      graph::Member& made = graph_.members.emplace_back();
      made.command = graph_.commands[member.command];
      made.units = nodes_[member.command].units;
      if (member.command == grown.prologue) {
        made.role = backend::MemberRole::prologue;
      } else {
        made.component =
            components.try_emplace(member.part, static_cast<uint32_t>(components.size())).first->second;
      }
    }
    return command;
  }

  ComputeGraph& graph_;
  const uint32_t count_;
  const Order order_;
  MergedOrder contraction_;
  const uint32_t workers_;
  const int64_t most_rows_;
  std::vector<FuseNode> nodes_;
  std::vector<uint32_t> fences_;
  std::vector<Value> values_;                              // of each temp
  std::map<Key, std::vector<uint32_t>> readers_;           // contractions with this input, ascending
  std::map<uint32_t, Grown> groups_;                       // by first member
  std::vector<std::pair<uint32_t, std::string>> refused_;  // reported if the command ends up in no group
  std::vector<backend::ArgumentInfo> infos_;
  FuseReport report_;
};

}  // namespace

std::string title(const ComputeGraph& graph, const Command& command) {
  if (command.op != nullptr) return std::string(command.op->name);
  std::vector<std::string_view> names;
  for (uint32_t m = 0; m < command.members.count; ++m)
    names.push_back(graph.members[command.members.first + m].command.op->name);
  return names.empty() ? "fence" : backend::joined(names);
}

FuseReport fuse(ComputeGraph& graph, std::span<const backend::Kernel> kernels,
                const backend::DeviceInfo& info) {
  return Fuser(graph, kernels, info).run();
}

}  // namespace refrain::graph
