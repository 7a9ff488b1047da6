// A PlanData as the CPU team walks it: steps that never change, and apart from them the counters that replays
// change.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/backend/cpu/fused_group.h"
#include "refrain/backend/cpu/gate.h"
#include "refrain/backend/cpu/units.h"

namespace refrain::backend::cpu {

/// One command, with all that a worker needs in two cache lines. Never changes.
struct alignas(2 * kCacheLineBytes) Step {
  void (*tiles)(const TileArgs&, uint32_t, uint32_t) = nullptr;  ///< null: a fence
  void (*prologue)(const TileArgs&) = nullptr;
  void (*prefetch)(const TileArgs&) = nullptr;  ///< null also when no argument may be loaded early
  void* const* args = nullptr;
  const std::byte* constants = nullptr;
  const uint32_t* live = nullptr;  ///< the live count; null: every row is live
  std::byte* scratch = nullptr;
  size_t scratch_stride_bytes = 0;
  uint32_t rows = 1;
  uint32_t rows_per_block = 1;
  uint32_t tiles_per_block = 1;
  uint32_t tile_count = 1;  ///< when all rows are live
  uint32_t worker = kNone;  ///< the one that runs it; kNone: any
};

/// What replays change of one unit. Claims and waits are on lines of their own: who polls does not slow
/// who claims.
struct Progress {
  alignas(kCacheLineBytes) std::atomic<uint64_t> claim{0};  ///< epoch << 32 | next tile; see team.cpp
  std::atomic<uint64_t> live{0};                            ///< epoch << 32 | live rows
  std::atomic<uint32_t> finished{0};                        ///< tiles done; 0 between replays
  uint64_t least_ns = UINT64_MAX;                           ///< of a run, in the replays that are timed
  alignas(kCacheLineBytes) Gate done;
};

struct Stamp {
  std::atomic<uint64_t> begin{0};
  std::atomic<uint64_t> end{0};
};

class CpuExecutable final : public Executable {
 public:
  /// `epoch`: of a replay before the first, for tests of its overflow.
  CpuExecutable(const PlanData& plan, const ExecutableOptions& options, uint32_t epoch = 0);

  /// Changes between replays only.
  const Units& units() const { return units_; }
  /// True while the runs of this replay are to be timed.
  bool timed() const { return timed_replays_ != 0; }

  /// The epoch of the next replay. Called when no worker is in this program.
  uint32_t next_epoch() const;
  /// Keeps the stamps of the replay that has just ended for `spans`. Called as above.
  void keep_stamps() const;
  void spans(std::span<TickSpan> spans) const;

  /// Notes that a step has thrown; the first counts. Any worker.
  void fail(uint32_t step, const char* what) const noexcept;
  /// True once a step of this replay has thrown: the rest need not run.
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  /// Why the replay that has just ended failed, empty when there was no memory to say it; forgets the failure.
  /// Called as above.
  std::string take_failure() const noexcept;

  const uint32_t queue;
  const std::string label;
  const bool placed;
  const bool timestamps;
  std::vector<Step> steps;                     ///< of each command
  const std::unique_ptr<Progress[]> progress;  ///< of each unit
  const std::unique_ptr<Stamp[]> stamps;       ///< null without timestamps

 private:
  void split_slow_runs() const;

  mutable Units units_;
  mutable uint32_t timed_replays_ = 0;  // that are left
  std::vector<Work> work_;
  std::vector<uint32_t> deps_;  // of commands
  std::vector<void*> args_;
  std::unique_ptr<std::byte[]> constants_;
  std::vector<GroupWalk> groups_;  // never grows once steps point into it
  mutable uint32_t epoch_;
  mutable std::mutex kept_mutex_;
  mutable std::vector<TickSpan> kept_;
  const PlanData& plan_;
  mutable std::atomic<bool> failed_{false};
  mutable std::string failure_;  // guarded by kept_mutex_
};

/// Tiles of the first `rows` rows.
inline uint32_t tile_count(const Step& step, uint32_t rows) {
  const uint32_t blocks = rows / step.rows_per_block + (rows % step.rows_per_block != 0);
  return blocks * step.tiles_per_block;
}

}  // namespace refrain::backend::cpu
