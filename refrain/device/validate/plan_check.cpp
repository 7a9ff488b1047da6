// One function for each part of a plan; each names the command and the argument that break the contract.
#include "refrain/device/validate/plan_check.h"

#include <algorithm>

#include "refrain/core/error.h"

namespace refrain::device::validate {
namespace {

std::string text(uint64_t value) { return std::to_string(value); }

template <class T>
bool in_array(const Range& range, const std::vector<T>& array) {
  return within(range.first, range.count, array.size());
}

class Checker {
 public:
  Checker(const Plan& plan, const PlanCheck& check) : plan_(plan), check_(check) {}

  std::vector<Touch> run() {
    check_options();
    for (uint32_t i = 0; i < plan_.commands.size(); ++i) check_command(i);
    check_sealed();
    return std::move(touches_);
  }

 private:
  std::string name(uint32_t index) const {
    const Command& command = plan_.commands[index];
    std::string result = "command " + text(index);
    if (command.label < plan_.labels.size()) result += " '" + plan_.labels[command.label] + "'";
    if (command.kernel != nullptr) result += " (" + std::string(command.kernel->name) + ")";
    return result;
  }

  std::string name(uint32_t index, uint32_t argument) const {
    const Command& command = plan_.commands[index];
    std::string result = name(index) + ": argument " + text(argument);
    if (argument == command.live_arg) return result + " (live count)";
    if (argument == command.scratch_arg) return result + " (scratch)";
    const auto& specs = command.kernel->op->args;
    return argument < specs.size() ? result + " (" + std::string(specs[argument].name) + ")" : result;
  }

  void check_options() const {
    const PrepareOptions& options = check_.options;
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
      if (plan_.commands[i].kind == CommandKind::kernel &&
          options.placement[i] >= check_.info.compute_units) {
        fail("prepare: " + name(i) + ": placement: expected below " + text(check_.info.compute_units) +
             ", got " + text(options.placement[i]));
      }
    }
  }

  void check_command(uint32_t index) {
    const Command& command = plan_.commands[index];
    if (command.label >= plan_.labels.size() && !(plan_.labels.empty() && command.label == 0)) {
      fail("prepare: " + name(index) + ": label " + text(command.label) + " of " + text(plan_.labels.size()));
    }
    if (command.kind == CommandKind::kernel) check_kernel(index);
    if (!in_array(command.args, plan_.args))
      fail("prepare: " + name(index) + ": its arguments leave Plan::args");
    if (!in_array(command.constants, plan_.constants)) {
      fail("prepare: " + name(index) + ": its constants leave Plan::constants");
    }
    if (!in_array(command.deps, plan_.deps)) fail("prepare: " + name(index) + ": its deps leave Plan::deps");
    check_deps(index);
    if (command.kind == CommandKind::fence) {
      fence_ = true;
      return;
    }
    check_launch(index);
    check_arguments(index);
  }

  void check_kernel(uint32_t index) const {
    const Kernel* kernel = plan_.commands[index].kernel;
    if (kernel == nullptr) fail("prepare: " + name(index) + ": no kernel");
    if (kernel->op == nullptr || kernel->entry == nullptr) {
      fail("prepare: " + name(index) + ": the kernel lacks its op or its entry");
    }
    if ((kernel->needs & ~check_.info.features) != 0) {
      fail("prepare: " + name(index) + ": the kernel needs features that the device lacks");
    }
  }

  void check_deps(uint32_t index) const {
    const Command& command = plan_.commands[index];
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
    const Command& command = plan_.commands[index];
    const Launch& launch = command.launch;
    if (launch.rows_per_block == 0 || launch.tiles_per_block == 0) {
      fail("prepare: " + name(index) + ": launch: a block has neither 0 rows nor 0 tiles");
    }
    const uint64_t blocks = (uint64_t{launch.rows} + launch.rows_per_block - 1) / launch.rows_per_block;
    if (blocks * launch.tiles_per_block >= UINT32_MAX - 1) {
      fail("prepare: " + name(index) + ": launch: " + text(blocks * launch.tiles_per_block) +
           " tiles are too many");
    }
    if ((launch.scratch_bytes > 0) != (command.scratch_arg != kNone)) {
      fail("prepare: " + name(index) + ": launch: scratch of " + text(launch.scratch_bytes) +
           " bytes and the scratch argument do not agree");
    }
    if (command.constants.first % 16 != 0)
      fail("prepare: " + name(index) + ": constants are not aligned to 16");
    if (command.constants.count != command.kernel->op->constants_bytes) {
      fail("prepare: " + name(index) + ": constants: expected " + text(command.kernel->op->constants_bytes) +
           " bytes, got " + text(command.constants.count));
    }
  }

  void check_arguments(uint32_t index) {
    const Command& command = plan_.commands[index];
    const auto& specs = command.kernel->op->args;
    auto expected = static_cast<uint32_t>(specs.size());
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
    for (uint32_t i = 0; i < command.args.count; ++i) {
      const Argument& argument = plan_.args[command.args.first + i];
      const bool extra = i >= specs.size();
      if (argument.view.bytes == 0) {
        if (extra || !specs[i].optional) fail("prepare: " + name(index, i) + ": not bound");
        continue;
      }
      if (!extra && argument.access != specs[i].access) {
        fail("prepare: " + name(index, i) + ": access is not that of the schema");
      }
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
    const Command& command = plan_.commands[index];
    const Argument& live = plan_.args[command.args.first + command.live_arg];
    if (live.access != Access::in) fail("prepare: " + name(index, command.live_arg) + ": expected access in");
    if (live.view.bytes < sizeof(uint32_t) || live.view.offset_bytes % sizeof(uint32_t) != 0) {
      fail("prepare: " + name(index, command.live_arg) + ": expected an aligned u32");
    }
  }

  void check_scratch(uint32_t index) const {
    const Command& command = plan_.commands[index];
    const Argument& scratch = plan_.args[command.args.first + command.scratch_arg];
    const std::string where = name(index, command.scratch_arg);
    if (scratch.access == Access::in || scratch.access == Access::status) {
      fail("prepare: " + where + ": expected access out or inout");
    }
    if (command.launch.scratch_bytes % 64 != 0 || scratch.view.offset_bytes % 64 != 0) {
      fail("prepare: " + where + ": the part of each worker is not aligned to 64");
    }
    const size_t needed = command.launch.scratch_bytes * check_.info.compute_units;
    // A placed command has one worker.
    const size_t least = check_.options.placement.empty() ? needed : command.launch.scratch_bytes;
    if (scratch.view.bytes < least) {
      fail("prepare: " + where + ": expected " + text(least) + " bytes, got " + text(scratch.view.bytes));
    }
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

  const Plan& plan_;
  const PlanCheck& check_;
  std::vector<Touch> touches_;
  bool fence_ = false;
};

}  // namespace

std::vector<Touch> check_plan(const Plan& plan, const PlanCheck& check) { return Checker(plan, check).run(); }

void fail(const std::string& what) { throw InvalidArgument("[validate] " + what); }

}  // namespace refrain::device::validate
