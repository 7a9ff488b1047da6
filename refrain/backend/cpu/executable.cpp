// Translates a PlanData once. Trusts it: what is wrong with a plan, validate/ finds.
#include "refrain/backend/cpu/executable.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace refrain::backend::cpu {
namespace {

constexpr size_t kConstantsAlignmentBytes = 16;

// An estimate of a command by the bytes that it is bound to: a call, and a core's own caches.
constexpr uint32_t kCallNs = 5;
constexpr size_t kBytesPerNs = 8;

// Bytes do not tell how much is computed. So the first replays are timed, and the least counts, since in one a
// worker may have been interrupted or the caches cold. A run is slow, and its commands better shared, when its
// members took twice what a member may, or it took several times what a run may.
constexpr uint32_t kTimedReplays = 8;
constexpr uint64_t kSlowRunNs = 4000;

std::byte* address_of(const BufferView& view, const BufferView& arena) {
  if (view.bytes == 0) return nullptr;
  return view.allocation != nullptr ? host_bytes(view) : host_bytes(arena) + view.offset_bytes;
}

uint32_t estimated_ns(const PlanData& plan, const PlanCommand& command, const Step& step) {
  if (step.tile_count > 1 || step.prefetch != nullptr) return Work::kAlone;
  size_t bytes = step.scratch_stride_bytes;
  for (uint32_t i = 0; i < command.args.count && bytes <= kMemberNs * kBytesPerNs; ++i) {
    if (i != command.scratch_arg) bytes += plan.args[command.args.first + i].view.bytes;
  }
  const size_t ns = kCallNs + bytes / kBytesPerNs;
  return ns <= kMemberNs ? static_cast<uint32_t>(ns) : Work::kAlone;
}

}  // namespace

CpuExecutable::CpuExecutable(const PlanData& plan, const ExecutableOptions& options, uint32_t epoch)
    : queue(options.queue),
      label(options.label),
      placed(!options.placement.empty()),
      timestamps(options.timestamps),
      progress(std::make_unique<Progress[]>(plan.commands.size())),
      stamps(options.timestamps ? std::make_unique<Stamp[]>(plan.commands.size()) : nullptr),
      epoch_(epoch),
      kept_(options.timestamps ? plan.commands.size() : 0),
      plan_(plan) {
  args_.reserve(plan.args.size());
  for (const Argument& argument : plan.args) args_.push_back(address_of(argument.view, options.arena));
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= kConstantsAlignmentBytes);
  constants_ = std::make_unique<std::byte[]>(plan.constants.size());
  if (!plan.constants.empty()) std::memcpy(constants_.get(), plan.constants.data(), plan.constants.size());

  groups_.reserve(plan.groups.size());
  steps.resize(plan.commands.size());
  work_.resize(plan.commands.size());
  std::vector<bool> awaited(plan.commands.size(), false);
  uint32_t segment = 0;  // the first command after the last fence
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const PlanCommand& command = plan.commands[i];
    Step& step = steps[i];
    Work& work = work_[i];
    work.dep_first = static_cast<uint32_t>(deps_.size());
    if (command.kind == CommandKind::fence) {
      // Every worker waits here for the ends of all chains, so nothing after it need look further back.
      for (uint32_t before = segment; before < i; ++before) {
        if (!awaited[before]) deps_.push_back(before);
      }
      work.ns = Work::kFence;
      work.dep_count = static_cast<uint32_t>(deps_.size()) - work.dep_first;
      segment = i + 1;
      continue;
    }
    for (uint32_t k = 0; k < command.deps.count; ++k) {
      const uint32_t dep = plan.deps[command.deps.first + k];
      if (dep < segment) continue;
      awaited[dep] = true;
      deps_.push_back(dep);
    }
    work.dep_count = static_cast<uint32_t>(deps_.size()) - work.dep_first;

    step.args = args_.data() + command.args.first;
    if (command.kind == CommandKind::fused_group) {
      groups_.push_back(make_group_walk(plan, command, args_.data(), constants_.get()));
      step.tiles = group_tiles;
      step.prologue = group_prologue;
      step.prefetch = may_prefetch(groups_.back()) ? group_prefetch : nullptr;
      step.constants = reinterpret_cast<const std::byte*>(&groups_.back());
    } else {
      const auto& kernel = *static_cast<const TileKernel*>(command.kernel->entry);
      step.tiles = kernel.tiles;
      step.prologue = kernel.prologue;
      step.prefetch = may_prefetch(plan, *command.kernel, command.args) ? kernel.prefetch : nullptr;
      step.constants = constants_.get() + command.constants.first;
    }
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
    // What runs once is not timed, so nothing would mend a wrong estimate.
    if (!placed && !options.once) work.ns = estimated_ns(plan, command, step);
  }
  units_ = make_units(work_, deps_);
  const auto is_run = [](const Unit& unit) { return unit.count > 1; };
  if (std::any_of(units_.all.begin(), units_.all.end(), is_run)) timed_replays_ = kTimedReplays + 1;
}

// Rarely: a program has this at most once. Where memory is short it stays as it is.
void CpuExecutable::split_slow_runs() const try {
  std::vector<Work> work = work_;
  bool any = false;
  for (size_t u = 0; u < units_.all.size(); ++u) {
    const Unit& unit = units_.all[u];
    const uint64_t ns = progress[u].least_ns;
    if (unit.count <= 1 || ns == UINT64_MAX) continue;
    if (ns <= std::min<uint64_t>(kSlowRunNs, uint64_t{2} * kMemberNs * unit.count)) continue;
    any = true;
    for (uint32_t i = unit.first; i < unit.first + unit.count; ++i) work[i].ns = Work::kAlone;
  }
  if (any) units_ = make_units(work, deps_);
} catch (const std::bad_alloc&) {
}

uint32_t CpuExecutable::next_epoch() const {
  if (timed_replays_ != 0 && --timed_replays_ == 0) split_slow_runs();
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

void CpuExecutable::keep_stamps() const {
  const std::lock_guard lock(kept_mutex_);
  uint64_t first = UINT64_MAX;
  for (size_t i = 0; i < kept_.size(); ++i) {
    if (steps[i].tiles == nullptr) continue;
    const uint64_t begin = stamps[i].begin.load(std::memory_order_relaxed);
    kept_[i] = {begin, begin, stamps[i].end.load(std::memory_order_relaxed)};
    first = std::min(first, kept_[i].begin);
  }
  // A fence passes when the last before it ends. Nobody could stamp that while others may be past it already.
  uint64_t passed = first == UINT64_MAX ? 0 : first;
  for (size_t i = 0; i < kept_.size(); ++i) {
    if (steps[i].tiles == nullptr) kept_[i] = {passed, passed, passed};
    passed = std::max(passed, kept_[i].end);
  }
}

void CpuExecutable::fail(uint32_t step, const char* what) const noexcept {
  const PlanCommand& command = plan_.commands[step];
  const std::lock_guard lock(kept_mutex_);
  if (failed()) return;
  try {
    failure_ = "command " + std::to_string(step) + " (" + title(plan_, command) + ")";
    if (command.label < plan_.labels.size() && !plan_.labels[command.label].empty())
      failure_ += " '" + plan_.labels[command.label] + "'";
    failure_ += std::string(" threw: ") + what;
  } catch (const std::bad_alloc&) {
    failure_.clear();
  }
  failed_.store(true, std::memory_order_relaxed);
}

std::string CpuExecutable::take_failure() const noexcept {
  const std::lock_guard lock(kept_mutex_);
  failed_.store(false, std::memory_order_relaxed);
  return std::exchange(failure_, {});
}

void CpuExecutable::spans(std::span<TickSpan> spans) const {
  const std::lock_guard lock(kept_mutex_);
  for (size_t i = 0; i < spans.size() && i < kept_.size(); ++i) spans[i] = kept_[i];
}

}  // namespace refrain::backend::cpu
