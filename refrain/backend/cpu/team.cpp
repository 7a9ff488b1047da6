// How workers share a program. Every worker walks all units in plan order and claims what is left of each, tiles
// of a command or a whole run; a unit starts when the units that it depends on are done, not at a barrier.
//
// No order of events deadlocks. A worker waits only before it claims, for units before the one it has come to,
// and what it has claimed it runs before it goes on. So let u be the first unit that is not done: all that u
// waits for lies before it and is done; if something of u is unclaimed, no worker has passed u, and the next
// to come claims it; if all is claimed, those who have claimed run it without waiting, since a run's members
// wait for nothing but members before them and what the whole run has waited for.
#include "refrain/backend/cpu/team.h"

#include <algorithm>
#include <exception>
#include <system_error>
#include <utility>

#include "refrain/core/error.h"

namespace refrain::backend::cpu {
namespace {

constexpr uint64_t kClosed = uint64_t{1} << 31;
// Values of the lower half of Progress::claim that are no tile.
constexpr uint32_t kAllClaimed = UINT32_MAX;
constexpr uint32_t kOpening = UINT32_MAX - 1;

constexpr int kChecksPerClock = 32;  // reading the clock costs about as much as one pause

uint64_t tagged(uint32_t epoch, uint32_t value) { return uint64_t{epoch} << 32 | value; }
uint32_t tag(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
uint32_t low(uint64_t word) { return static_cast<uint32_t>(word); }

uint64_t now_ticks() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

void stamp(std::atomic<uint64_t>& where) { where.store(now_ticks(), std::memory_order_relaxed); }

TileArgs bind(const Step& step, uint32_t worker) {
  TileArgs args;
  args.args = step.args;
  args.constants = step.constants;
  args.scratch = step.scratch == nullptr ? nullptr : step.scratch + worker * step.scratch_stride_bytes;
  args.live_rows = step.rows;
  return args;
}

}  // namespace

Team::Team(uint32_t workers, std::chrono::nanoseconds spin, bool may_sleep, std::function<void()> on_complete,
           uint32_t sequence)
    : size_(workers),
      spin_(spin),
      may_sleep_(may_sleep),
      polite_(!may_sleep || spin.count() == 0),
      on_complete_(std::move(on_complete)),
      sequence_(sequence) {
  threads_.reserve(workers);
  try {
    for (uint32_t worker = 0; worker < workers; ++worker)
      threads_.emplace_back([this, worker] { run(worker); });
  } catch (const std::system_error& error) {
    stop();
    throw DeviceError("cpu: thread " + std::to_string(threads_.size() + 1) + " of " +
                      std::to_string(workers) + " cannot be started: " + error.what());
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  publish({}, 0);
  for (std::thread& thread : threads_) thread.join();
}

void Team::start(const CpuExecutable& program) {
  // Where commands are bound to workers, each must come; else whoever comes serves.
  publish({&program, program.next_epoch()}, program.placed ? size_ : 0);
}

void Team::publish(const Job& job, uint32_t inside) {
  job_ = job;
  sequence_ = sequence_ == Gate::kMaxEpoch ? 1 : sequence_ + 1;
  inside_.store(tagged(sequence_, inside), std::memory_order_relaxed);
  published_.pass(sequence_);
}

bool Team::enter(uint32_t sequence) {
  uint64_t word = inside_.load(std::memory_order_relaxed);
  do {
    if (tag(word) != sequence || (word & kClosed) != 0) return false;
  } while (!inside_.compare_exchange_weak(word, word + 1, std::memory_order_relaxed));
  return true;
}

// True for the last one, which then sees the work of all.
bool Team::leave(uint32_t sequence) {
  uint64_t word = inside_.load(std::memory_order_relaxed);
  uint64_t next = 0;
  do {
    next = low(word) == 1 ? tagged(sequence, static_cast<uint32_t>(kClosed)) : word - 1;
  } while (!inside_.compare_exchange_weak(word, next, std::memory_order_release, std::memory_order_relaxed));
  if ((next & kClosed) == 0) return false;
  (void)inside_.load(std::memory_order_acquire);
  return true;
}

void Team::run(uint32_t worker) {
  uint32_t seen = 0;
  while (true) {
    wait_for([&] { return published_.epoch() != seen; }, [&] { published_.sleep_while(seen); });
    seen = published_.epoch();
    // A placed job counts every worker as inside from its start. To tell one apart a worker would have to
    // read the job before it is inside; instead it may count itself once more, and leave twice.
    if (!enter(seen)) continue;
    const Job job = job_;
    if (job.program == nullptr) return;
    if (size_ == 1) {
      run_in_order(*job.program, 0, static_cast<uint32_t>(job.program->steps.size()), 0);
    } else if (job.program->placed) {
      walk_placed(job, worker);
    } else {
      walk(job, worker);
    }
    const bool placed = job.program->placed;  // once a worker has left, the program may be gone
    bool last = leave(seen);
    if (placed && !last) last = leave(seen);
    if (last) on_complete_();
  }
}

template <class Ready, class Sleep>
void Team::wait_for(const Ready& ready, const Sleep& sleep) const {
  if (ready()) return;
  if (!may_sleep_) {
    while (!ready()) std::this_thread::yield();
    return;
  }
  if (spin_.count() > 0) {
    const auto end = std::chrono::steady_clock::now() + spin_;
    do {
      for (int i = 0; i < kChecksPerClock; ++i) {
        if (ready()) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  while (!ready()) sleep();
}

void Team::await(Gate& gate, uint32_t epoch) {
  wait_for([&] { return gate.passed(epoch); }, [&] { gate.sleep_until(epoch); });
}

// What a kernel throws fails the submission; from then on its commands end without having run.
template <class Function>
void Team::call(const CpuExecutable& program, uint32_t index, const Function& function) {
  if (program.failed()) return;
  try {
    function(program.steps[index]);
  } catch (const std::exception& error) {
    program.fail(index, error.what());
  } catch (...) {
    program.fail(index, "no exception of the standard library");
  }
}

void Team::call_tiles(const CpuExecutable& program, uint32_t index, const TileArgs& args, const Claim& part,
                      bool prologue) {
  call(program, index, [&](const Step& step) {
    if (prologue && step.prologue != nullptr) step.prologue(args);
    step.tiles(args, part.begin, part.end);
  });
}

// Commands [first, end) one after the other, each whole.
void Team::run_in_order(const CpuExecutable& program, uint32_t first, uint32_t end, uint32_t worker) {
  for (uint32_t i = first; i < end; ++i) {
    const Step& step = program.steps[i];
    if (step.tiles == nullptr) continue;
    if (program.timestamps) stamp(program.stamps[i].begin);
    TileArgs args = bind(step, worker);
    uint32_t tiles = step.tile_count;
    if (step.live != nullptr) {
      args.live_rows = std::min(*step.live, step.rows);
      tiles = tile_count(step, args.live_rows);
    }
    if (tiles > 0) call_tiles(program, i, args, {0, tiles, tiles, args.live_rows}, true);
    if (program.timestamps) stamp(program.stamps[i].end);
  }
}

void Team::walk(const Job& job, uint32_t worker) {
  const CpuExecutable& program = *job.program;
  const Units& units = program.units();
  const auto count = static_cast<uint32_t>(units.all.size());
  const uint64_t gone = tagged(job.epoch, kAllClaimed);
  for (uint32_t u = 0; u < count; ++u) {
    const Unit& unit = units.all[u];
    Progress& progress = program.progress[u];
    // Claimed by others, so what it waits for is done: go on without looking. Nobody claims a fence: each worker waits.
    if (progress.claim.load(std::memory_order_relaxed) == gone) continue;
    const Step& step = program.steps[unit.first];
    TileArgs args = bind(step, worker);
    bool prefetches = step.prefetch != nullptr;
    for (uint32_t k = 0; k < unit.dep_count; ++k) {
      Gate& gate = program.progress[units.deps[unit.dep_first + k]].done;
      if (gate.passed(job.epoch)) continue;
      if (std::exchange(prefetches, false))
        call(program, unit.first, [&](const Step& waiting) { waiting.prefetch(args); });
      await(gate, job.epoch);
    }
    if (unit.count == 1) {
      run_step(job, u, unit.first, args);
    } else if (unit.count != 0) {
      uint64_t word = progress.claim.load(std::memory_order_relaxed);
      if (word != gone && progress.claim.compare_exchange_strong(word, gone, std::memory_order_relaxed))
        run_run(job, u, worker);
    }
  }
}

// As walk, of a program that says which worker runs what: each worker its own commands, whole; nothing is claimed.
void Team::walk_placed(const Job& job, uint32_t worker) {
  const CpuExecutable& program = *job.program;
  const Units& units = program.units();
  for (size_t u = 0; u < units.all.size(); ++u) {
    const Unit& unit = units.all[u];
    const bool fence = unit.count == 0;
    if (!fence && program.steps[unit.first].worker != worker) continue;
    for (uint32_t k = 0; k < unit.dep_count; ++k)
      await(program.progress[units.deps[unit.dep_first + k]].done, job.epoch);
    if (fence) continue;
    run_in_order(program, unit.first, unit.first + unit.count, worker);
    program.progress[u].done.pass(job.epoch);
  }
}

void Team::run_run(const Job& job, uint32_t index, uint32_t worker) {
  const CpuExecutable& program = *job.program;
  const Unit& unit = program.units().all[index];
  Progress& progress = program.progress[index];
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = program.timed() ? Clock::now() : Clock::time_point();
  run_in_order(program, unit.first, unit.first + unit.count, worker);
  if (program.timed()) {
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
    progress.least_ns = std::min(progress.least_ns, static_cast<uint64_t>(ns));
  }
  progress.done.pass(job.epoch);
}

void Team::run_step(const Job& job, uint32_t unit, uint32_t index, TileArgs& args) {
  Progress& progress = job.program->progress[unit];
  bool prepared = false;
  Claim part;
  while (claim(job, progress, index, part)) {
    args.live_rows = part.rows;
    call_tiles(*job.program, index, args, part, !prepared);
    prepared = true;
    const uint32_t tiles = part.end - part.begin;
    if (tiles == part.total) {
      complete(job, progress, index);
      return;
    }
    if (progress.finished.fetch_add(tiles, std::memory_order_release) + tiles == part.total) {
      (void)progress.finished.load(std::memory_order_acquire);
      progress.finished.store(0, std::memory_order_relaxed);
      complete(job, progress, index);
      return;
    }
  }
}

// Claims some tiles; false when none are left. Claims order nothing: what a tile may read is ordered by the
// gates alone. A live count is read by one worker only, the opener, while the command cannot complete without
// it: a late worker might meet the next writer of the count. The others get it through Progress::live.
bool Team::claim(const Job& job, Progress& progress, uint32_t index, Claim& part) {
  const Step& step = job.program->steps[index];
  const auto claimed = [&](uint32_t next) {
    return tagged(job.epoch, next == part.total ? kAllClaimed : next);
  };
  part.rows = step.rows;
  part.total = step.tile_count;

  uint64_t word = progress.claim.load(std::memory_order_relaxed);
  while (true) {
    part.begin = 0;
    if (tag(word) == job.epoch) {
      part.begin = low(word);
      if (part.begin == kAllClaimed) return false;
      if (part.begin == kOpening) {
        if (polite_) {
          std::this_thread::yield();  // the opener may need this CPU
        } else {
          pause();
        }
        word = progress.claim.load(std::memory_order_relaxed);
        continue;
      }
      if (step.live != nullptr) {
        uint64_t live = progress.live.load(std::memory_order_relaxed);
        while (tag(live) != job.epoch) live = progress.live.load(std::memory_order_relaxed);
        part.rows = low(live);
        part.total = tile_count(step, part.rows);
      }
    } else if (step.live != nullptr) {
      if (!progress.claim.compare_exchange_strong(word, tagged(job.epoch, kOpening),
                                                  std::memory_order_relaxed)) {
        continue;
      }
      part.rows = std::min(*step.live, step.rows);
      part.total = tile_count(step, part.rows);
      part.end = next_end(part);
      progress.live.store(tagged(job.epoch, part.rows), std::memory_order_relaxed);
      progress.claim.store(claimed(part.end), std::memory_order_relaxed);
      break;
    }
    part.end = next_end(part);
    if (progress.claim.compare_exchange_weak(word, claimed(part.end), std::memory_order_relaxed)) break;
  }
  if (part.begin == 0 && job.program->timestamps) stamp(job.program->stamps[index].begin);
  if (part.total > 0) return true;
  complete(job, progress, index);
  return false;
}

// Parts that shrink with what is left: few claims first, even ends.
uint32_t Team::next_end(const Claim& part) const {
  const uint32_t left = part.total - part.begin;
  return part.begin + std::min(left, std::max(1u, left / (2 * size_)));
}

void Team::complete(const Job& job, Progress& progress, uint32_t index) {
  if (job.program->timestamps) stamp(job.program->stamps[index].end);
  progress.done.pass(job.epoch);
}

}  // namespace refrain::backend::cpu
