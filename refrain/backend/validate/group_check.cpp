// Commands of several members: fused groups, and sets that one kernel computes.
#include "refrain/backend/validate/plan_checker.h"

#include <algorithm>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::backend::validate {

// Members side by side, their arguments in order; the places are the kernel's own business.
void Checker::check_set(uint32_t index) {
  const PlanCommand& command = plan_.commands[index];
  const std::string where = "prepare: " + name(index) + ": ";
  const GroupKernel* kernel = command.group_kernel;
  if (kernel == nullptr || kernel->entry == nullptr) fail(where + "no kernel, or one without its entry");
  if ((kernel->needs & ~(check_.info.features | kFeatureFast)) != 0)
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
    if (!in_array(member.constants, plan_.constants)) fail(whose + "its constants leave PlanData::constants");
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

// Members side by side, their arguments in order, components that have members, tiles that make a block.
void Checker::check_group(uint32_t index) {
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

void Checker::check_components(const std::string& where, const FusedGroup& group,
                               const Launch& launch) const {
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
void Checker::check_member(uint32_t index, const FusedGroup& group, const FusedMember& member,
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
void Checker::check_private(const FusedGroup& group, const FusedMember& member,
                            const std::string& whose) const {
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
void Checker::check_group_scratch(const std::string& where, const FusedGroup& group,
                                  const Launch& launch) const {
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
void Checker::check_sharing(const std::string& where, const FusedGroup& group) const {
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

}  // namespace refrain::backend::validate
