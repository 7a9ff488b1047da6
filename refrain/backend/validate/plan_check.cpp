// The parts of a plan that stand alone: options, commands, arguments.
#include "refrain/backend/validate/plan_checker.h"

#include <algorithm>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::backend::validate {

std::vector<Touch> Checker::run() {
  check_options();
  for (uint32_t i = 0; i < plan_.commands.size(); ++i) check_command(i);
  check_sealed();
  return std::move(touches_);
}

std::string Checker::name(uint32_t index) const {
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

std::string Checker::name(uint32_t index, uint32_t argument) const {
  const PlanCommand& command = plan_.commands[index];
  std::string result = name(index) + ": argument " + text(argument);
  if (argument == command.live_arg) return result + " (live count)";
  if (argument == command.scratch_arg) return result + " (scratch)";
  const bool known = command.kind != CommandKind::kernel || argument < command.kernel->op->args.size();
  return known ? result + " (" + argument_title(plan_, command, argument) + ")" : result;
}

void Checker::check_options() const {
  const ExecutableOptions& options = check_.options;
  if (options.queue >= check_.info.queue_count) {
    fail("prepare: queue: expected below " + text(check_.info.queue_count) + ", got " + text(options.queue));
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

void Checker::check_command(uint32_t index) {
  const PlanCommand& command = plan_.commands[index];
  if (command.label >= plan_.labels.size() && !(plan_.labels.empty() && command.label == 0)) {
    fail("prepare: " + name(index) + ": label " + text(command.label) + " of " + text(plan_.labels.size()));
  }
  if (command.kind > CommandKind::group_kernel) fail("prepare: " + name(index) + ": its kind does not exist");
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

void Checker::check_kernel(uint32_t index, const Kernel* kernel) const {
  if (kernel == nullptr) fail("prepare: " + name(index) + ": no kernel");
  if (kernel->op == nullptr || kernel->entry == nullptr) {
    fail("prepare: " + name(index) + ": the kernel lacks its op or its entry");
  }
  if ((kernel->needs & ~(check_.info.features | kFeatureFast)) != 0) {
    fail("prepare: " + name(index) + ": the kernel needs features that the device lacks");
  }
}

void Checker::check_deps(uint32_t index) const {
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

void Checker::check_launch(uint32_t index) const {
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
  const bool scratch = launch.scratch_bytes != 0 || launch.workspace_bytes != 0;
  if (scratch != (command.scratch_arg != kNone)) {
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

void Checker::check_constants(uint32_t index, const Range& constants, const OpSchema& op) const {
  if (constants.first % 16 != 0) fail("prepare: " + name(index) + ": constants are not aligned to 16");
  if (constants.count != op.constants_bytes) {
    fail("prepare: " + name(index) + ": constants: expected " + text(op.constants_bytes) + " bytes, got " +
         text(constants.count));
  }
}

void Checker::check_arguments(uint32_t index) {
  const Kernel& kernel = *plan_.commands[index].kernel;
  const auto count = static_cast<uint32_t>(kernel.op->args.size());
  check_extras(index, count);
  check_bindings(index, 0, kernel, kNone);
  touch_extras(index, count);
}

// After `count` arguments of schemas come the live count and the scratch, and nothing else.
void Checker::check_extras(uint32_t index, uint32_t count) const {
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
void Checker::check_bindings(uint32_t index, uint32_t first, const Kernel& kernel, uint32_t private_arg) {
  const auto& specs = kernel.op->args;
  for (uint32_t i = 0; i < specs.size(); ++i) {
    const Argument& argument = plan_.args[plan_.commands[index].args.first + first + i];
    if (argument.view.bytes == 0) {
      if (!specs[i].optional && i != private_arg) fail("prepare: " + name(index, first + i) + ": not bound");
      continue;
    }
    if (i == private_arg) fail("prepare: " + name(index, first + i) + ": bound, and private to the group");
    if (argument.access != specs[i].access)
      fail("prepare: " + name(index, first + i) + ": access is not that of the schema");
    touches_.push_back(resolve(index, first + i));
  }
}

void Checker::touch_extras(uint32_t index, uint32_t first) {
  const PlanCommand& command = plan_.commands[index];
  for (uint32_t i = first; i < command.args.count; ++i) {
    if (plan_.args[command.args.first + i].view.bytes == 0)
      fail("prepare: " + name(index, i) + ": not bound");
    touches_.push_back(resolve(index, i));
  }
  if (command.live_arg != kNone) check_live(index);
  if (command.scratch_arg != kNone) check_scratch(index);
}

Touch Checker::resolve(uint32_t index, uint32_t i) const {
  const Argument& argument = plan_.args[plan_.commands[index].args.first + i];
  const BufferView& view = argument.view;
  const std::string where = name(index, i);
  const bool arena = view.allocation == nullptr;
  if (!arena && !check_.lives(view.allocation)) fail("prepare: " + where + ": its allocation does not live");
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

void Checker::check_live(uint32_t index) const {
  const PlanCommand& command = plan_.commands[index];
  const Argument& live = plan_.args[command.args.first + command.live_arg];
  if (live.access != Access::in) fail("prepare: " + name(index, command.live_arg) + ": expected access in");
  if (live.view.bytes < sizeof(uint32_t) || live.view.offset_bytes % sizeof(uint32_t) != 0) {
    fail("prepare: " + name(index, command.live_arg) + ": expected an aligned u32");
  }
}

void Checker::check_scratch(uint32_t index) const {
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
  const Launch& launch = command.launch;
  const size_t walkers = launch.walkers != 0 ? launch.walkers : check_.info.compute_units;
  const size_t parts = check_.options.placement.empty() ? walkers : 1;
  const size_t own = scratch.view.bytes - std::min(scratch.view.bytes, launch.workspace_bytes);
  if (own / parts < launch.scratch_bytes || scratch.view.bytes < launch.workspace_bytes) {
    fail("prepare: " + where + ": expected " + text(parts) + " times " + text(launch.scratch_bytes) +
         (launch.workspace_bytes != 0 ? " and " + text(launch.workspace_bytes) : "") + " bytes, got " +
         text(scratch.view.bytes));
  }
}

void Checker::check_sealed() const {
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

std::vector<Touch> check_plan(const PlanData& plan, const PlanCheck& check) {
  return Checker(plan, check).run();
}

void fail(const std::string& what) { throw InvalidArgument("[validate] " + what); }

}  // namespace refrain::backend::validate
