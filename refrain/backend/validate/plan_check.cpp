// One function for each part of a plan; each names the command and the argument that break the contract.
#include "refrain/backend/validate/plan_check.h"

#include <algorithm>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::backend::validate {
namespace {

std::string text(uint64_t value) { return std::to_string(value); }

template <class T>
bool in_array(const Range& range, const std::vector<T>& array) {
  return within(range.first, range.count, array.size());
}

class Checker {
 public:
  Checker(const PlanData& plan, const PlanCheck& check) : plan_(plan), check_(check) {}

  std::vector<Touch> run() {
    check_options();
    for (uint32_t i = 0; i < plan_.commands.size(); ++i) check_command(i);
    check_sealed();
    return std::move(touches_);
  }

 private:
  std::string name(uint32_t index) const {
    const PlanCommand& command = plan_.commands[index];
    std::string result = "command " + text(index);
    if (command.label < plan_.labels.size()) result += " '" + plan_.labels[command.label] + "'";
    if (command.kind == CommandKind::fused_group) {
      result += " (group)";
    } else if (command.kind == CommandKind::group_kernel && command.group_kernel != nullptr) {
      result += " (" + std::string(command.group_kernel->name) + ")";
    } else if (command.kernel != nullptr) {
      result += " (" + std::string(command.kernel->name) + ")";
    }
    return result;
  }

  std::string name(uint32_t index, uint32_t argument) const {
    const PlanCommand& command = plan_.commands[index];
    std::string result = name(index) + ": argument " + text(argument);
    if (argument == command.live_arg) return result + " (live count)";
    if (argument == command.scratch_arg) return result + " (scratch)";
    const bool known = command.kind != CommandKind::kernel || argument < command.kernel->op->args.size();
    return known ? result + " (" + argument_title(plan_, command, argument) + ")" : result;
  }

  void check_options() const {
    const ExecutableOptions& options = check_.options;
    if (options.queue >= check_.info.queue_count) {
      fail("prepare: queue: expected below " + text(check_.info.queue_count) + ", got " +
           text(options.queue));
    }
    if (plan_.arena_bytes > 0) {
      const BufferView& arena = options.arena;
      if (arena.allocation == nullptr)
        fail("prepare: arena: " + text(plan_.arena_bytes) + " bytes needed, none given");
      if (!check_.lives(arena.allocation)) fail("prepare: arena: its allocation does not live");
      if (!within(arena.offset_bytes, arena.bytes, arena.allocation->bytes)) {
        fail("prepare: arena: the view leaves its allocation of " + text(arena.allocation->bytes) + " bytes");
      }
      if (arena.bytes < plan_.arena_bytes) {
        fail("prepare: arena: " + text(plan_.arena_bytes) + " bytes needed, " + text(arena.bytes) + " given");
      }
      if (arena.offset_bytes % check_.info.buffer_alignment_bytes != 0) {
        fail("prepare: arena: offset " + text(arena.offset_bytes) + " is not aligned to " +
             text(check_.info.buffer_alignment_bytes));
      }
    }
    if (options.placement.empty()) return;
    if (options.placement.size() != plan_.commands.size()) {
      fail("prepare: placement: expected " + text(plan_.commands.size()) + " workers, got " +
           text(options.placement.size()));
    }
    for (uint32_t i = 0; i < plan_.commands.size(); ++i) {
      if (plan_.commands[i].kind != CommandKind::fence && options.placement[i] >= check_.info.compute_units) {
        fail("prepare: " + name(i) + ": placement: expected below " + text(check_.info.compute_units) +
             ", got " + text(options.placement[i]));
      }
    }
  }

  void check_command(uint32_t index) {
    const PlanCommand& command = plan_.commands[index];
    if (command.label >= plan_.labels.size() && !(plan_.labels.empty() && command.label == 0)) {
      fail("prepare: " + name(index) + ": label " + text(command.label) + " of " + text(plan_.labels.size()));
    }
    if (command.kind > CommandKind::group_kernel)
      fail("prepare: " + name(index) + ": its kind does not exist");
    if (command.kind == CommandKind::kernel) check_kernel(index, command.kernel);
    if (!in_array(command.args, plan_.args))
      fail("prepare: " + name(index) + ": its arguments leave PlanData::args");
    if (!in_array(command.constants, plan_.constants)) {
      fail("prepare: " + name(index) + ": its constants leave PlanData::constants");
    }
    if (!in_array(command.deps, plan_.deps))
      fail("prepare: " + name(index) + ": its deps leave PlanData::deps");
    check_deps(index);
    if (command.kind == CommandKind::fence) {
      if (command.args.count != 0) fail("prepare: " + name(index) + ": a fence with arguments");
      fence_ = true;
      return;
    }
    check_launch(index);
    if (command.kind == CommandKind::fused_group) {
      check_group(index);
      return;
    }
    if (command.kind == CommandKind::group_kernel) {
      check_set(index);
      return;
    }
    check_constants(index, command.constants, *command.kernel->op);
    check_arguments(index);
  }

  // Members side by side, their arguments in order; the places are the kernel's own business.
  void check_set(uint32_t index) {
    const PlanCommand& command = plan_.commands[index];
    const std::string where = "prepare: " + name(index) + ": ";
    const GroupKernel* kernel = command.group_kernel;
    if (kernel == nullptr || kernel->entry == nullptr) fail(where + "no kernel, or one without its entry");
    if ((kernel->needs & ~check_.info.features) != 0)
      fail(where + "the kernel needs features that the device lacks");
    if (command.placed.count == 0 || !in_array(command.placed, plan_.placed))
      fail(where + "its members leave PlanData::placed");
    uint32_t argument = command.args.first;
    for (uint32_t m = 0; m < command.placed.count; ++m) {
      const PlacedMember& member = plan_.placed[command.placed.first + m];
      const std::string whose = where + "member " + text(m) + ": ";
      if (member.op == nullptr) fail(whose + "no op");
      if (member.args.first != argument || member.args.count != member.op->args.size() ||
          !in_array(member.args, plan_.args))
        fail(whose + "its arguments are not where its schema expects them");
      argument += member.args.count;
      if (!in_array(member.constants, plan_.constants))
        fail(whose + "its constants leave PlanData::constants");
      check_constants(index, member.constants, *member.op);
    }
    check_extras(index, argument - command.args.first);
    for (uint32_t m = 0; m < command.placed.count; ++m) {
      const PlacedMember& member = plan_.placed[command.placed.first + m];
      // What has no bytes is optional, or elided.
      for (uint32_t i = 0; i < member.args.count; ++i) {
        const Argument& bound = plan_.args[member.args.first + i];
        if (bound.view.bytes == 0) continue;
        const uint32_t at = member.args.first + i - command.args.first;
        if (bound.access != member.op->args[i].access)
          fail("prepare: " + name(index, at) + ": access is not that of the schema");
        touches_.push_back(resolve(index, at));
      }
    }
    touch_extras(index, argument - command.args.first);
  }

  void check_kernel(uint32_t index, const Kernel* kernel) const {
    if (kernel == nullptr) fail("prepare: " + name(index) + ": no kernel");
    if (kernel->op == nullptr || kernel->entry == nullptr) {
      fail("prepare: " + name(index) + ": the kernel lacks its op or its entry");
    }
    if ((kernel->needs & ~check_.info.features) != 0) {
      fail("prepare: " + name(index) + ": the kernel needs features that the device lacks");
    }
  }

  void check_deps(uint32_t index) const {
    const PlanCommand& command = plan_.commands[index];
    uint32_t greatest = 0;
    bool any = false;
    for (uint32_t k = 0; k < command.deps.count; ++k) {
      const uint32_t dep = plan_.deps[command.deps.first + k];
      if (dep >= index)
        fail("prepare: " + name(index) + ": dep " + text(dep) + " is not earlier than the command");
      if (plan_.commands[dep].kind == CommandKind::fence) continue;
      greatest = std::max(greatest, plan_.commands[dep].level);
      any = true;
    }
    if (command.kind == CommandKind::fence || !any) return;
    // Past a fence levels may be counted anew or on; before one they follow from the deps alone.
    const bool wrong = fence_ ? command.level <= greatest : command.level != greatest + 1;
    if (wrong) {
      fail("prepare: " + name(index) + ": level: expected " + text(greatest + 1) + ", got " +
           text(command.level));
    }
  }

  void check_launch(uint32_t index) const {
    const PlanCommand& command = plan_.commands[index];
    const Launch& launch = command.launch;
    if (launch.rows_per_block == 0 || launch.tiles_per_block == 0) {
      fail("prepare: " + name(index) + ": launch: a block has neither 0 rows nor 0 tiles");
    }
    const uint64_t blocks = (uint64_t{launch.rows} + launch.rows_per_block - 1) / launch.rows_per_block;
    if (blocks * launch.tiles_per_block >= UINT32_MAX - 1) {
      fail("prepare: " + name(index) + ": launch: " + text(blocks * launch.tiles_per_block) +
           " tiles are too many");
    }
    if ((scratch_bytes(launch, check_.info) > 0) != (command.scratch_arg != kNone)) {
      fail("prepare: " + name(index) + ": launch: scratch of " + text(launch.scratch_bytes) +
           " bytes and the scratch argument do not agree");
    }
    if (launch.ticket_bytes != 0 &&
        (command.ticket_offset_bytes % 64 != 0 ||
         !within(command.ticket_offset_bytes, launch.ticket_bytes, plan_.ticket_bytes))) {
      fail("prepare: " + name(index) + ": launch: " + text(launch.ticket_bytes) + " bytes of counters at " +
           text(command.ticket_offset_bytes) + " leave the plan's " + text(plan_.ticket_bytes));
    }
  }

  void check_constants(uint32_t index, const Range& constants, const OpSchema& op) const {
    if (constants.first % 16 != 0) fail("prepare: " + name(index) + ": constants are not aligned to 16");
    if (constants.count != op.constants_bytes) {
      fail("prepare: " + name(index) + ": constants: expected " + text(op.constants_bytes) + " bytes, got " +
           text(constants.count));
    }
  }

  // Members side by side, their arguments in order, components that have members, tiles that make a block.
  void check_group(uint32_t index) {
    const PlanCommand& command = plan_.commands[index];
    const std::string where = "prepare: " + name(index) + ": ";
    if (command.launch.rows == 0) fail(where + "launch: no rows");
    if (command.group >= plan_.groups.size()) fail(where + "its group does not exist");
    const FusedGroup& group = plan_.groups[command.group];
    if (!in_array(group.members, plan_.members)) fail(where + "its members leave PlanData::members");
    if (!in_array(group.components, plan_.components))
      fail(where + "its components leave PlanData::components");
    check_components(where, group, command.launch);
    std::vector<bool> used(group.components.count);
    uint32_t argument = command.args.first;
    uint32_t prologues = 0;
    for (uint32_t m = 0; m < group.members.count; ++m) {
      const FusedMember& member = plan_.members[group.members.first + m];
      const std::string whose = where + "member " + text(m) + ": ";
      check_kernel(index, member.kernel);
      if (member.args.first != argument || member.args.count != member.kernel->op->args.size() ||
          !in_array(member.args, plan_.args))
        fail(whose + "its arguments are not where its schema expects them");
      argument += member.args.count;
      check_member(index, group, member, whose);
      if (member.role == MemberRole::prologue) {
        ++prologues;
      } else {
        used[member.component] = true;
      }
    }
    if (prologues != (group.value_row_bytes != 0 ? 1u : 0u))
      fail(where + "its prologue and value do not agree");
    if (std::ranges::find(used, false) != used.end()) fail(where + "a component has no members");
    const uint32_t expected = argument - command.args.first;
    check_extras(index, expected);
    for (uint32_t m = 0; m < group.members.count; ++m) {
      const FusedMember& member = plan_.members[group.members.first + m];
      check_bindings(index, member.args.first - command.args.first, *member.kernel, member.private_arg);
    }
    touch_extras(index, expected);
    check_group_scratch(where, group, command.launch);
    check_sharing(where, group);
  }

  void check_components(const std::string& where, const FusedGroup& group, const Launch& launch) const {
    uint64_t tiles = 0;
    for (uint32_t c = 0; c < group.components.count; ++c) {
      const FusedComponent& component = plan_.components[group.components.first + c];
      if (component.units == 0 || component.units_per_tile == 0)
        fail(where + "component " + text(c) + ": neither units nor units of a tile are 0");
      tiles += (uint64_t{component.units} + component.units_per_tile - 1) / component.units_per_tile;
    }
    if (tiles != launch.tiles_per_block)
      fail(where + "launch: expected " + text(tiles) + " tiles of a block, got " +
           text(launch.tiles_per_block));
  }

  // `whose`: begins messages.
  void check_member(uint32_t index, const FusedGroup& group, const FusedMember& member,
                    const std::string& whose) const {
    const OpSchema& op = *member.kernel->op;
    if (!member.kernel->regions) fail(whose + "its kernel computes whole tiles only");
    if (!in_array(member.constants, plan_.constants)) fail(whose + "its constants leave PlanData::constants");
    check_constants(index, member.constants, op);
    const Launch& launch = plan_.commands[index].launch;
    const OpCall call{
        &op, {}, std::span(plan_.constants).subspan(member.constants.first, member.constants.count)};
    if (op.units == nullptr || member.units == 0 || member.units != op.units(call))
      fail(whose + "units: not those of its op, got " + text(member.units));
    for (uint32_t i = 0; i < op.args.size(); ++i) {
      const size_t bytes = plan_.args[member.args.first + i].view.bytes;
      const uint64_t parts = uint64_t{launch.rows} * member.units;
      if (op.args[i].rows && op.args[i].units && bytes % parts != 0)
        fail(whose + std::string(op.args[i].name) + ": " + text(bytes) + " bytes do not divide into " +
             text(parts) + " units");
    }
    if (member.private_arg != kNone) check_private(group, member, whose);
    if (member.role == MemberRole::prologue) {
      if (member.private_arg == kNone) fail(whose + "a prologue without its value");
      if (member.component != kNone) fail(whose + "a prologue with a component");
      return;
    }
    if (member.role != MemberRole::tile) fail(whose + "its role does not exist");
    if (member.component >= group.components.count) fail(whose + "its component does not exist");
    if (member.units % plan_.components[group.components.first + member.component].units != 0)
      fail(whose + "the units of its component do not divide its own");
  }

  // The prologue's value is what it writes and the others read, and it writes nothing else: each worker runs it.
  void check_private(const FusedGroup& group, const FusedMember& member, const std::string& whose) const {
    if (member.private_arg >= member.args.count || group.value_row_bytes == 0)
      fail(whose + "its private argument does not exist");
    if (member.args.count > kMaxPrivateArgs)
      fail(whose + "more than " + text(kMaxPrivateArgs) + " arguments, one of them private");
    const auto& specs = member.kernel->op->args;
    const bool prologue = member.role == MemberRole::prologue;
    if (specs[member.private_arg].access != (prologue ? Access::out : Access::in))
      fail(whose + "its private argument is not " + (prologue ? "written" : "read"));
    if (!prologue) return;
    for (uint32_t i = 0; i < specs.size(); ++i) {
      const size_t bytes = plan_.args[member.args.first + i].view.bytes;
      if (i == member.private_arg || bytes == 0) continue;
      if (specs[i].access == Access::out || specs[i].access == Access::inout)
        fail(whose + "a prologue that writes " + std::string(specs[i].name) + ", too");
    }
  }

  // Parts of a worker's scratch: the value, then what members have for themselves or share.
  void check_group_scratch(const std::string& where, const FusedGroup& group, const Launch& launch) const {
    struct Part {
      size_t begin, end;
      bool shared;
    };
    std::vector<Part> parts;
    const auto add = [&](const std::string& whose, size_t begin, size_t bytes, size_t row_bytes) {
      if (begin % 64 != 0) fail(whose + "scratch: not aligned to 64");
      if (!within(begin, bytes, launch.scratch_bytes))
        fail(whose + "scratch: leaves the " + text(launch.scratch_bytes) + " bytes of a worker");
      if (row_bytes != 0 &&
          (bytes < kGroupHeaderBytes || (bytes - kGroupHeaderBytes) / row_bytes < launch.rows_per_block))
        fail(whose + "scratch: " + text(bytes) + " bytes are too few for the rows of a block");
      const Part part{begin, begin + bytes, row_bytes == 0};
      for (const Part& other : parts) {
        if (part.begin < other.end && other.begin < part.end && !(part.shared && other.shared))
          fail(whose + "scratch: overlaps what another keeps");
      }
      parts.push_back(part);
    };
    if (group.value_row_bytes != 0) {
      if (group.value_row_bytes > launch.scratch_bytes / launch.rows_per_block)
        fail(where + "value: its rows leave the " + text(launch.scratch_bytes) + " bytes of a worker");
      add(where + "value: ", 0, kGroupHeaderBytes + launch.rows_per_block * group.value_row_bytes,
          group.value_row_bytes);
    }
    for (uint32_t m = 0; m < group.members.count; ++m) {
      const FusedMember& member = plan_.members[group.members.first + m];
      const std::string whose = where + "member " + text(m) + ": ";
      if ((member.row_scratch_bytes != 0) != member.kernel->keeps_rows)
        fail(whose + "scratch: " + text(member.row_scratch_bytes) + " bytes of a row, and its kernel keeps " +
             (member.kernel->keeps_rows ? "some" : "none"));
      add(whose, member.scratch_offset_bytes, member.scratch_bytes, member.row_scratch_bytes);
    }
    if (group.value_row_bytes == 0) return;
    // What follows the value shows how long its rows are, as no argument does.
    size_t next = launch.scratch_bytes;
    for (const Part& part : parts) {
      if (part.begin != 0 && part.begin < part.end) next = std::min(next, part.begin);
    }
    const size_t end = kGroupHeaderBytes + align_up(launch.rows_per_block * group.value_row_bytes, 64);
    if (end != next)
      fail(where + "value: its rows end at " + text(end) + ", and what follows begins at " + text(next));
  }

  // What two members touch, one of them writing, is the same bytes, by unit, in one component. Nobody writes
  // what the prologue reads: others may not have run it yet.
  void check_sharing(const std::string& where, const FusedGroup& group) const {
    struct Bound {
      uint32_t member;
      const ArgumentSpec* spec;
      const Argument* argument;
    };
    std::vector<Bound> bounds;
    for (uint32_t m = 0; m < group.members.count; ++m) {
      const FusedMember& member = plan_.members[group.members.first + m];
      for (uint32_t i = 0; i < member.args.count; ++i) {
        const Argument& argument = plan_.args[member.args.first + i];
        if (argument.view.bytes != 0) bounds.push_back({m, &member.kernel->op->args[i], &argument});
      }
    }
    for (size_t a = 0; a < bounds.size(); ++a) {
      for (size_t b = a + 1; b < bounds.size(); ++b) {
        const Bound &x = bounds[a], &y = bounds[b];
        const BufferView &first = x.argument->view, &second = y.argument->view;
        const bool conflict = x.member != y.member && first.allocation == second.allocation &&
                              first.offset_bytes < second.offset_bytes + second.bytes &&
                              second.offset_bytes < first.offset_bytes + first.bytes &&
                              backend::conflict(x.argument->access, y.argument->access);
        if (!conflict) continue;
        const FusedMember& one = plan_.members[group.members.first + x.member];
        const FusedMember& other = plan_.members[group.members.first + y.member];
        const bool by_unit = x.spec->rows && x.spec->units && y.spec->rows && y.spec->units &&
                             first.offset_bytes == second.offset_bytes && first.bytes == second.bytes;
        if (!by_unit || one.component != other.component || one.component == kNone) {
          fail(where + "members " + text(x.member) + " (" + std::string(x.spec->name) + ") and " +
               text(y.member) + " (" + std::string(y.spec->name) + ") share memory, not unit by unit");
        }
      }
    }
  }

  void check_arguments(uint32_t index) {
    const Kernel& kernel = *plan_.commands[index].kernel;
    const auto count = static_cast<uint32_t>(kernel.op->args.size());
    check_extras(index, count);
    check_bindings(index, 0, kernel, kNone);
    touch_extras(index, count);
  }

  // After `count` arguments of schemas come the live count and the scratch, and nothing else.
  void check_extras(uint32_t index, uint32_t count) const {
    const PlanCommand& command = plan_.commands[index];
    uint32_t expected = count;
    if (command.live_arg != kNone && command.live_arg != expected++) {
      fail("prepare: " + name(index) + ": live_arg: expected " + text(expected - 1) + ", got " +
           text(command.live_arg));
    }
    if (command.scratch_arg != kNone && command.scratch_arg != expected++) {
      fail("prepare: " + name(index) + ": scratch_arg: expected " + text(expected - 1) + ", got " +
           text(command.scratch_arg));
    }
    if (command.args.count != expected) {
      fail("prepare: " + name(index) + ": expected " + text(expected) + " arguments, got " +
           text(command.args.count));
    }
  }

  // The arguments of one kernel, from `first` of the command's on.
  void check_bindings(uint32_t index, uint32_t first, const Kernel& kernel, uint32_t private_arg) {
    const auto& specs = kernel.op->args;
    for (uint32_t i = 0; i < specs.size(); ++i) {
      const Argument& argument = plan_.args[plan_.commands[index].args.first + first + i];
      if (argument.view.bytes == 0) {
        if (!specs[i].optional && i != private_arg)
          fail("prepare: " + name(index, first + i) + ": not bound");
        continue;
      }
      if (i == private_arg) fail("prepare: " + name(index, first + i) + ": bound, and private to the group");
      if (argument.access != specs[i].access)
        fail("prepare: " + name(index, first + i) + ": access is not that of the schema");
      touches_.push_back(resolve(index, first + i));
    }
  }

  void touch_extras(uint32_t index, uint32_t first) {
    const PlanCommand& command = plan_.commands[index];
    for (uint32_t i = first; i < command.args.count; ++i) {
      if (plan_.args[command.args.first + i].view.bytes == 0)
        fail("prepare: " + name(index, i) + ": not bound");
      touches_.push_back(resolve(index, i));
    }
    if (command.live_arg != kNone) check_live(index);
    if (command.scratch_arg != kNone) check_scratch(index);
  }

  Touch resolve(uint32_t index, uint32_t i) const {
    const Argument& argument = plan_.args[plan_.commands[index].args.first + i];
    const BufferView& view = argument.view;
    const std::string where = name(index, i);
    const bool arena = view.allocation == nullptr;
    if (!arena && !check_.lives(view.allocation))
      fail("prepare: " + where + ": its allocation does not live");
    const size_t size = arena ? plan_.arena_bytes : view.allocation->bytes;
    if (!within(view.offset_bytes, view.bytes, size)) {
      fail("prepare: " + where + ": bytes [" + text(view.offset_bytes) + ", +" + text(view.bytes) +
           ") leave the " + (arena ? "arena" : "allocation") + " of " + text(size));
    }
    Touch touch;
    touch.allocation = arena ? check_.options.arena.allocation : view.allocation;
    touch.begin = view.offset_bytes + (arena ? check_.options.arena.offset_bytes : 0);
    touch.end = touch.begin + view.bytes;
    touch.writes = argument.access != Access::in;
    touch.sealed = argument.sealed;
    touch.where = where;
    if (touch.sealed && touch.writes) fail("prepare: " + where + ": sealed, and written");
    return touch;
  }

  void check_live(uint32_t index) const {
    const PlanCommand& command = plan_.commands[index];
    const Argument& live = plan_.args[command.args.first + command.live_arg];
    if (live.access != Access::in) fail("prepare: " + name(index, command.live_arg) + ": expected access in");
    if (live.view.bytes < sizeof(uint32_t) || live.view.offset_bytes % sizeof(uint32_t) != 0) {
      fail("prepare: " + name(index, command.live_arg) + ": expected an aligned u32");
    }
  }

  void check_scratch(uint32_t index) const {
    const PlanCommand& command = plan_.commands[index];
    const Argument& scratch = plan_.args[command.args.first + command.scratch_arg];
    const std::string where = name(index, command.scratch_arg);
    if (scratch.access != Access::out && scratch.access != Access::inout) {
      fail("prepare: " + where + ": expected access out or inout");
    }
    if (command.launch.scratch_bytes % 64 != 0 || scratch.view.offset_bytes % 64 != 0) {
      fail("prepare: " + where + ": the part of each worker is not aligned to 64");
    }
    // A placed command has one worker.
    Launch launch = command.launch;
    if (!check_.options.placement.empty()) launch.walkers = 1;
    const size_t expected = scratch_bytes(launch, check_.info);
    if (scratch.view.bytes < expected)
      fail("prepare: " + where + ": expected " + text(expected) + " bytes, got " + text(scratch.view.bytes));
  }

  void check_sealed() const {
    for (const Touch& read : touches_) {
      if (!read.sealed) continue;
      for (const Touch& write : touches_) {
        if (write.writes && write.allocation == read.allocation && write.begin < read.end &&
            read.begin < write.end) {
          fail("prepare: " + write.where + ": writes what is sealed in " + read.where);
        }
      }
    }
  }

  const PlanData& plan_;
  const PlanCheck& check_;
  std::vector<Touch> touches_;
  bool fence_ = false;
};

}  // namespace

std::vector<Touch> check_plan(const PlanData& plan, const PlanCheck& check) {
  return Checker(plan, check).run();
}

void fail(const std::string& what) { throw InvalidArgument("[validate] " + what); }

}  // namespace refrain::backend::validate
