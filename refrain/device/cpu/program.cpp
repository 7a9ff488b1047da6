// Translates a Plan once. Trusts it: what is wrong with a plan, validate/ finds.
#include "refrain/device/cpu/program.h"

#include <cstring>
#include <new>

namespace refrain::device::cpu {
namespace {

constexpr size_t kConstantsAlignmentBytes = 16;

std::byte* address_of(const BufferView& view, const BufferView& arena) {
  if (view.bytes == 0) return nullptr;
  if (view.allocation != nullptr) return static_cast<std::byte*>(view.allocation->host) + view.offset_bytes;
  return static_cast<std::byte*>(arena.allocation->host) + arena.offset_bytes + view.offset_bytes;
}

bool may_prefetch(const Command& command, const Plan& plan) {
  for (uint32_t i = 0; i < command.args.count && i < 64; ++i) {
    const Argument& argument = plan.args[command.args.first + i];
    if (argument.sealed && argument.view.bytes > 0 && (command.kernel->prefetches >> i & 1u) != 0)
      return true;
  }
  return false;
}

}  // namespace

CpuProgram::CpuProgram(const Plan& plan, const PrepareOptions& options)
    : queue(options.queue),
      placed(!options.placement.empty()),
      timestamps(options.timestamps),
      progress(std::make_unique<Progress[]>(plan.commands.size())),
      stamps(options.timestamps ? std::make_unique<Stamp[]>(plan.commands.size()) : nullptr),
      kept_(options.timestamps ? plan.commands.size() : 0) {
  args_.reserve(plan.args.size());
  for (const Argument& argument : plan.args) args_.push_back(address_of(argument.view, options.arena));
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= kConstantsAlignmentBytes);
  constants_ = std::make_unique<std::byte[]>(plan.constants.size());
  if (!plan.constants.empty()) std::memcpy(constants_.get(), plan.constants.data(), plan.constants.size());

  steps.resize(plan.commands.size());
  std::vector<bool> awaited(plan.commands.size(), false);
  uint32_t segment = 0;  // the first command after the last fence
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const Command& command = plan.commands[i];
    Step& step = steps[i];
    step.dep_first = static_cast<uint32_t>(deps.size());
    if (command.kind == CommandKind::fence) {
      // Every worker waits here for the ends of all chains, so nothing after it need look further back.
      for (uint32_t before = segment; before < i; ++before) {
        if (!awaited[before]) deps.push_back(before);
      }
      step.dep_count = static_cast<uint32_t>(deps.size()) - step.dep_first;
      segment = i + 1;
      continue;
    }
    for (uint32_t k = 0; k < command.deps.count; ++k) {
      const uint32_t dep = plan.deps[command.deps.first + k];
      if (dep < segment) continue;
      awaited[dep] = true;
      deps.push_back(dep);
    }
    step.dep_count = static_cast<uint32_t>(deps.size()) - step.dep_first;

    const auto& kernel = *static_cast<const TileKernel*>(command.kernel->entry);
    step.tiles = kernel.tiles;
    step.prologue = kernel.prologue;
    step.prefetch = kernel.prefetch != nullptr && may_prefetch(command, plan) ? kernel.prefetch : nullptr;
    step.args = args_.data() + command.args.first;
    step.constants = constants_.get() + command.constants.first;
    step.rows = command.launch.rows;
    step.rows_per_block = command.launch.rows_per_block;
    step.tiles_per_block = command.launch.tiles_per_block;
    step.tile_count = tile_count(step, step.rows);
    if (command.live_arg != kNone) step.live = static_cast<const uint32_t*>(step.args[command.live_arg]);
    if (command.scratch_arg != kNone) {
      step.scratch = static_cast<std::byte*>(step.args[command.scratch_arg]);
      // A placed command has one worker; all take the first part, so that reuse of scratch stays visible as a
      // conflict.
      step.scratch_stride_bytes = placed ? 0 : command.launch.scratch_bytes;
    }
    if (placed) step.worker = options.placement[i];
  }
}

uint32_t CpuProgram::next_epoch() const {
  if (epoch_ == Gate::kMaxEpoch) {
    for (size_t i = 0; i < steps.size(); ++i) {
      progress[i].claim.store(0, std::memory_order_relaxed);
      progress[i].live.store(0, std::memory_order_relaxed);
      progress[i].done.reset();
    }
    epoch_ = 0;
  }
  return ++epoch_;
}

void CpuProgram::keep_stamps() const {
  const std::lock_guard lock(kept_mutex_);
  for (size_t i = 0; i < kept_.size(); ++i) {
    kept_[i] = {stamps[i].begin.load(std::memory_order_relaxed),
                stamps[i].end.load(std::memory_order_relaxed)};
  }
}

void CpuProgram::spans(std::span<TickSpan> spans) const {
  const std::lock_guard lock(kept_mutex_);
  for (size_t i = 0; i < spans.size() && i < kept_.size(); ++i) spans[i] = kept_[i];
}

}  // namespace refrain::device::cpu
