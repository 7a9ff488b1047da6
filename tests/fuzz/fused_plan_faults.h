// What is wrong with a plan, fused or not, as a plan of its recording: judged by what was recorded alone, command
// by command and byte by byte, and sharing nothing with the passes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "refrain/backend/plan.h"
#include "refrain/graph/compute_graph.h"
#include "tests/fuzz/random_graphs_world.h"
#include "tests/null/order_oracle.h"

namespace refrain::null_tests {

class FusedPlanFaults {
 public:
  /// `recorded`: expanded. Every command has constants, which tell commands apart.
  FusedPlanFaults(const graph::ComputeGraph& recorded, const backend::PlanData& plan, Tally& tally)
      : recorded_(recorded), plan_(plan), tally_(tally) {}

  /// The first fault; empty: there is none.
  std::string find() {
    if (std::string fault = place_commands(); !fault.empty()) return fault;
    for (const std::vector<uint32_t>& members : commands_) {
      if (members.size() < 2) continue;
      if (std::string fault = group_faults(members); !fault.empty()) return fault;
    }
    if (std::string fault = argument_faults(); !fault.empty()) return fault;
    return order_faults();
  }

 private:
  const graph::Binding& binding(uint32_t command, uint32_t index) const {
    return recorded_.bindings[recorded_.commands[command].bindings.first + index];
  }
  uint32_t binding_count(uint32_t command) const { return recorded_.commands[command].bindings.count; }

  /// Which recorded commands each command of the plan is.
  std::string place_commands() {
    std::map<uint32_t, uint32_t> by_constants;
    std::vector<uint32_t> fences;
    for (uint32_t i = 0; i < recorded_.commands.size(); ++i) {
      const graph::Command& command = recorded_.commands[i];
      if (command.fence()) {
        fences.push_back(i);
      } else {
        by_constants[command.constants.first] = i;
      }
    }
    const auto found = [&](const backend::Range& constants) {
      const auto at = by_constants.find(constants.first);
      return at == by_constants.end() ? backend::kNone : at->second;
    };
    of_.assign(recorded_.commands.size(), backend::kNone);
    size_t next_fence = 0;
    for (const backend::PlanCommand& command : plan_.commands) {
      std::vector<uint32_t>& here = commands_.emplace_back();
      if (command.kind == backend::CommandKind::fence) {
        if (next_fence == fences.size()) return "a fence too many";
        here = {fences[next_fence++]};
      } else if (command.kind == backend::CommandKind::kernel) {
        here = {found(command.constants)};
      } else {
        const backend::Range& members = plan_.groups[command.group].members;
        for (uint32_t m = members.first; m < members.first + members.count; ++m)
          here.push_back(found(plan_.members[m].constants));
        if (here.size() < 2) return "a group of one";
        if (std::ranges::adjacent_find(here, std::greater_equal<>()) != here.end())
          return "members are not in recorded order";
      }
      for (const uint32_t index : here) {
        if (index == backend::kNone) return "a command that was not recorded";
        if (of_[index] != backend::kNone) return "a command comes twice";
        of_[index] = static_cast<uint32_t>(commands_.size() - 1);
      }
    }
    if (std::ranges::count(of_, backend::kNone) != 0) return "a command is missing";
    return {};
  }

  static bool conflict(const graph::Binding& a, const graph::Binding& b) {
    if (!a.bound() || !b.bound()) return false;
    if (a.access == b.access && (a.access == Access::in || a.access == Access::accumulate)) return false;
    if (a.temp != graph::kNone || b.temp != graph::kNone) return a.temp == b.temp;
    return a.view.allocation == b.view.allocation &&
           a.view.offset_bytes < b.view.offset_bytes + b.view.bytes &&
           b.view.offset_bytes < a.view.offset_bytes + a.view.bytes;
  }

  /// True when each unit of the op touches the same part of this argument's rows, and no other.
  bool by_unit(uint32_t command, uint32_t index) const {
    const auto& args = recorded_.commands[command].op->args;
    return index < args.size() && args[index].rows && args[index].units;
  }

  /// Tiles run in any order, also at once: what members share beyond their tile must be read alone.
  std::string group_faults(const std::vector<uint32_t>& members) {
    const backend::PlanCommand& command = plan_.commands[of_[members[0]]];
    const backend::FusedGroup& group = plan_.groups[command.group];
    const auto planned = [&](size_t i) -> const backend::FusedMember& {
      return plan_.members[group.members.first + i];
    };
    ++tally_.fusions;
    tally_.members += members.size();
    tally_.shared_tiles += group.components.count < members.size() - (group.value_row_bytes != 0);
    for (size_t j = 0; j < members.size(); ++j) {
      const backend::FusedMember& later = planned(j);
      if (!later.kernel->regions) return "a member computes whole tiles only";
      if (later.role == backend::MemberRole::prologue) {
        ++tally_.prologues;
        if (std::string fault = prologue_faults(members, j); !fault.empty()) return fault;
      } else if (later.units % plan_.components[group.components.first + later.component].units != 0) {
        return "units do not divide";
      }
      const graph::Binding &x = binding(members[0], binding_count(members[0]) - 1),
                           &y = binding(members[j], binding_count(members[j]) - 1);
      if (recorded_.infos[binding(members[0], 0).info].shape[0] !=
          recorded_.infos[binding(members[j], 0).info].shape[0])
        return "members have different rows";
      const bool live = recorded_.commands[members[0]].live;
      if (live != recorded_.commands[members[j]].live || (live && x.view.allocation != y.view.allocation))
        return "members have different live counts";
      for (size_t i = 0; i < j; ++i) {
        const backend::FusedMember& earlier = planned(i);
        for (uint32_t a = 0; a < binding_count(members[i]); ++a) {
          for (uint32_t b = 0; b < binding_count(members[j]); ++b) {
            const graph::Binding &p = binding(members[i], a), &q = binding(members[j], b);
            if (!conflict(p, q)) continue;
            if (earlier.private_arg == a && later.private_arg == b) continue;
            if (earlier.component != later.component || p.temp == graph::kNone || !by_unit(members[i], a) ||
                !by_unit(members[j], b))
              return "members of a group conflict";
          }
        }
      }
    }
    return {};
  }

  std::string prologue_faults(const std::vector<uint32_t>& members, size_t index) const {
    const backend::FusedGroup& group = plan_.groups[plan_.commands[of_[members[0]]].group];
    const backend::FusedMember& prologue = plan_.members[group.members.first + index];
    if (prologue.private_arg == backend::kNone) return "a prologue has no value";
    const graph::Binding& value = binding(members[index], prologue.private_arg);
    if (value.temp == graph::kNone || value.access != Access::out) return "a prologue's value is not its own";
    for (uint32_t i = 0; i < recorded_.commands.size(); ++i) {
      for (uint32_t b = 0; b < binding_count(i); ++b) {
        if (binding(i, b).temp != value.temp) continue;
        const auto member = std::ranges::find(members, i);
        if (member == members.end()) return "a prologue's value is used outside";
        const auto at = static_cast<uint32_t>(member - members.begin());
        if (plan_.members[group.members.first + at].private_arg != b) return "a prologue's value is bound";
        if (i != members[index] && recorded_.commands[i].op->iteration != backend::Iteration::contraction)
          return "a prologue's value is read by other than products";
      }
    }
    return {};
  }

  /// Each recorded binding is bound to the same bytes, and each temp to one place of the arena.
  std::string argument_faults() const {
    std::map<uint32_t, size_t> places;
    for (uint32_t i = 0; i < recorded_.commands.size(); ++i) {
      const graph::Command& recorded = recorded_.commands[i];
      if (recorded.fence()) continue;
      const backend::PlanCommand& command = plan_.commands[of_[i]];
      uint32_t first = command.args.first, own = backend::kNone;
      if (command.kind == backend::CommandKind::fused_group) {
        const auto& members = commands_[of_[i]];
        const auto at = static_cast<uint32_t>(std::ranges::find(members, i) - members.begin());
        const backend::FusedMember& member = plan_.members[plan_.groups[command.group].members.first + at];
        first = member.args.first;
        own = member.private_arg;
      }
      for (uint32_t b = 0; b < recorded.bindings.count; ++b) {
        if (b == own) continue;
        const graph::Binding& bound = binding(i, b);
        const bool live = recorded.live && b == recorded.bindings.count - 1;
        const uint32_t index = live ? command.args.first + command.live_arg : first + b;
        const backend::Argument& arg = plan_.args[index];
        if (index < command.args.first || index >= command.args.first + command.args.count)
          return "an argument is not the command's";
        if (arg.access != bound.access || arg.view.bytes != bound.view.bytes) return "an argument differs";
        if (bound.temp == graph::kNone) {
          if (arg.view.allocation != bound.view.allocation ||
              arg.view.offset_bytes != bound.view.offset_bytes)
            return "an argument is elsewhere";
        } else if (arg.view.allocation != nullptr ||
                   places.try_emplace(bound.temp, arg.view.offset_bytes).first->second !=
                       arg.view.offset_bytes) {
          return "a temp is in two places";
        }
      }
    }
    return {};
  }

  /// The edges are those of the recording between the commands that are left, no more and no less.
  std::string order_faults() const {
    Relation needed(plan_.commands.size());
    for (uint32_t j = 0; j < recorded_.commands.size(); ++j) {
      for (uint32_t i = 0; i < j; ++i) {
        if (of_[i] == of_[j]) continue;
        bool apart = recorded_.commands[i].fence() || recorded_.commands[j].fence();
        for (uint32_t a = 0; a < binding_count(i) && !apart; ++a) {
          for (uint32_t b = 0; b < binding_count(j) && !apart; ++b)
            apart = conflict(binding(i, a), binding(j, b));
        }
        if (!apart) continue;
        if (of_[j] < of_[i]) return "a command comes before one that it follows";
        needed[of_[j]][of_[i]] = true;
      }
    }
    needed = closure(std::move(needed));
    const Relation stored = stored_order(plan_);
    for (size_t i = 0; i < needed.size(); ++i) {
      if ((needed[i] & ~stored[i]).any()) return "an edge is missing";
      if ((stored[i] & ~needed[i]).any()) return "an edge is one too many";
    }
    return plan_.deps.size() == reduction(needed).size() ? "" : "edges are not the transitive reduction";
  }

  const graph::ComputeGraph& recorded_;
  const backend::PlanData& plan_;
  Tally& tally_;
  std::vector<std::vector<uint32_t>> commands_;  // of each command of the plan: what it is made of
  std::vector<uint32_t> of_;                     // of each recorded command: the plan's
};

}  // namespace refrain::null_tests
