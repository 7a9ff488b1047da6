#include "refrain/graph/fuse_sets.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>

#include "refrain/graph/accesses.h"
#include "refrain/graph/hazards.h"
#include "refrain/graph/merged_order.h"
#include "refrain/graph/set_call.h"

namespace refrain::graph {
namespace {

// How far behind its first command a set looks: more than a layer has commands.
constexpr uint32_t kReach = 32;
constexpr size_t kMostMembers = 16;

class SetFuser {
 public:
  SetFuser(ComputeGraph& graph, std::span<const backend::GroupKernel> kernels,
           const backend::DeviceInfo& info)
      : graph_(graph),
        order_(derive_order(accesses(graph), /*reduced=*/false)),
        merged_(order_),
        uses_(count_uses(graph)),
        calls_(graph, uses_),
        taken_(graph.commands.size()) {
    for (const backend::GroupKernel& kernel : kernels) {
      if ((kernel.needs & ~info.features) == 0) kernels_.push_back(&kernel);
    }
    for (const uint32_t level : order_.levels)
      report_.recorded_levels = std::max<size_t>(report_.recorded_levels, level);
  }

  FuseReport run() {
    for (uint32_t i = 0; i < taken_.size(); ++i) {
      if (!taken_[i] && !graph_.commands[i].fence() && !graph_.commands[i].group()) form(i);
    }
    if (!sets_.empty()) rewrite();
    return std::move(report_);
  }

 private:
  /// Members in recorded order, and the kernel that computes just them.
  struct Found {
    std::vector<uint32_t> members;
    const backend::GroupKernel* kernel = nullptr;
    std::vector<uint32_t> places;
  };

  backend::SetCall call_of(const std::vector<uint32_t>& members) {
    std::vector<const Command*> commands;
    for (const uint32_t member : members) commands.push_back(&graph_.commands[member]);
    return calls_.make(commands);
  }

  void form(uint32_t first) {
    std::set<uint32_t> apart;  // what cannot be one with the set
    for (;;) {
      const Found found = grow(first, apart);
      if (found.kernel == nullptr) return;
      const uint32_t in_the_way = join(found.members);
      if (in_the_way == kNone) {
        std::string commands;
        for (const uint32_t member : found.members) {
          taken_[member] = true;
          fmt::format_to(std::back_inserter(commands), " #{}", member);
        }
        report_.fusions.push_back(fmt::format("{}:{}", found.kernel->name, commands));
        sets_.emplace(first, found);
        return;
      }
      report_.misses.push_back(fmt::format("#{} {} does not join {} at #{}: a path leads out of it and back",
                                           in_the_way, graph_.commands[in_the_way].op->name,
                                           found.kernel->name, first));
      apart.insert(in_the_way);
    }
  }

  /// The last set that was whole while it grew from `first`; a kernel of null: there was none.
  Found grow(uint32_t first, const std::set<uint32_t>& apart) {
    Found best;
    std::vector<uint32_t> members{first};
    std::vector<const backend::GroupKernel*> fitting = fit(members, kernels_, best);
    const auto end = static_cast<uint32_t>(std::min<size_t>(taken_.size(), size_t{first} + 1 + kReach));
    const Command& seed = graph_.commands[first];
    for (uint32_t i = first + 1; i < end && !fitting.empty() && members.size() < kMostMembers; ++i) {
      const Command& command = graph_.commands[i];
      if (command.fence()) break;
      if (taken_[i] || command.group() || apart.contains(i)) continue;
      if (rows_of(graph_, command) != rows_of(graph_, seed) || !same_live(graph_, seed, command)) continue;
      members.push_back(i);
      auto still = fit(members, fitting, best);
      if (still.empty()) {
        members.pop_back();
      } else {
        fitting = std::move(still);
      }
    }
    return best;
  }

  /// Those of `candidates` that fit, at least in part. The first that fits whole becomes `best`.
  std::vector<const backend::GroupKernel*> fit(const std::vector<uint32_t>& members,
                                               const std::vector<const backend::GroupKernel*>& candidates,
                                               Found& best) {
    const backend::SetCall call = call_of(members);
    std::vector<const backend::GroupKernel*> fitting;
    std::vector<uint32_t> places(members.size());
    bool whole = false;
    for (const backend::GroupKernel* kernel : candidates) {
      const backend::Fit found = kernel->fits(call, places);
      if (found == backend::Fit::no) continue;
      fitting.push_back(kernel);
      if (found == backend::Fit::whole && !whole) best = {members, kernel, places};
      whole = whole || found == backend::Fit::whole;
    }
    return fitting;
  }

  /// Makes the members one node of the order. kNone: done; else a member that cannot be, and nothing has changed.
  uint32_t join(const std::vector<uint32_t>& members) {
    const MergedOrder before = merged_;
    for (size_t m = 1; m < members.size(); ++m) {
      if (merged_.join(members[0], members[m]) == kNone) continue;
      merged_ = before;
      return members[m];
    }
    return kNone;
  }

  void rewrite() {
    std::vector<Command> commands;
    for (const uint32_t first : merged_.sequence()) {
      const auto found = sets_.find(first);
      commands.push_back(found == sets_.end() ? graph_.commands[first] : command_of(found->second));
    }
    graph_.commands = std::move(commands);
  }

  Command command_of(const Found& set) {
    Command command;
    command.label = graph_.commands[set.members[0]].label;
    command.kernel = set.kernel;
    command.members = {static_cast<uint32_t>(graph_.members.size()),
                       static_cast<uint32_t>(set.members.size())};
    for (size_t m = 0; m < set.members.size(); ++m) {
      Member& member = graph_.members.emplace_back();
      member.command = graph_.commands[set.members[m]];
      member.place = set.places[m];
    }
    return command;
  }

  ComputeGraph& graph_;
  const Order order_;
  MergedOrder merged_;
  const std::vector<uint32_t> uses_;
  SetCalls calls_;
  std::vector<const backend::GroupKernel*> kernels_;  // that this device has the features for
  std::vector<bool> taken_;
  std::map<uint32_t, Found> sets_;  // by first member
  FuseReport report_;
};

}  // namespace

FuseReport fuse_sets(ComputeGraph& graph, std::span<const backend::GroupKernel> kernels,
                     const backend::DeviceInfo& info) {
  return SetFuser(graph, kernels, info).run();
}

}  // namespace refrain::graph
