// The workers of the CPU backend: threads that together walk one program at a time. Knows nothing of queues.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "refrain/backend/cpu/executable.h"
#include "refrain/backend/cpu/gate.h"

namespace refrain::backend::cpu {

class Team {
 public:
  /// `on_complete` is called by a worker when a program has been walked; it may call start().
  /// `sequence`: of a job before the first, for tests of its overflow. Throws DeviceError when a thread
  /// cannot be started.
  Team(uint32_t workers, std::chrono::nanoseconds spin, bool may_sleep, std::function<void()> on_complete,
       uint32_t sequence = 0);
  ~Team();  ///< nothing runs any more
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// Lets the workers walk `program`. Everything before it happens before the program's commands. Called
  /// again only after `on_complete` has been called for it.
  void start(const CpuExecutable& program);

  uint32_t size() const { return size_; }

 private:
  struct Job {
    const CpuExecutable* program = nullptr;  // null: stop
    uint32_t epoch = 0;
  };

  struct Claim {
    uint32_t begin = 0;  // tiles
    uint32_t end = 0;
    uint32_t total = 0;
    uint32_t rows = 0;  // live
  };

  void stop();
  void run(uint32_t worker);
  void publish(const Job& job, uint32_t inside);
  bool enter(uint32_t sequence);
  bool leave(uint32_t sequence);
  template <class Function>
  static void call(const CpuExecutable& program, uint32_t index, const Function& function);
  static void call_tiles(const CpuExecutable& program, uint32_t index, const TileArgs& args,
                         const Claim& part, bool prologue);
  static void run_in_order(const CpuExecutable& program, uint32_t first, uint32_t end, uint32_t worker);
  void walk(const Job& job, uint32_t worker);
  void walk_placed(const Job& job, uint32_t worker);
  static void run_run(const Job& job, uint32_t index, uint32_t worker);
  void run_step(const Job& job, uint32_t unit, uint32_t index, TileArgs& args);
  bool claim(const Job& job, Progress& progress, uint32_t index, Claim& part);
  uint32_t next_end(const Claim& part) const;
  static void complete(const Job& job, Progress& progress, uint32_t index);
  void await(Gate& gate, uint32_t epoch);
  template <class Ready, class Sleep>
  void wait_for(const Ready& ready, const Sleep& sleep) const;

  const uint32_t size_;
  const std::chrono::nanoseconds spin_;
  const bool may_sleep_;
  const bool polite_;  // there may be more workers than CPUs
  const std::function<void()> on_complete_;

  // Written by start() while no worker is inside.
  alignas(kCacheLineBytes) Job job_;
  uint32_t sequence_;  // of the last job published
  alignas(kCacheLineBytes) Gate published_;
  // sequence << 32 | closed | workers inside. A job closes when the last worker inside leaves: one that has
  // left has seen every tile claimed, and a claimed tile is run by a worker inside. A worker that comes later
  // does not get in, so a sleeping or preempted worker delays nobody, and nobody touches a program that has
  // completed.
  alignas(kCacheLineBytes) std::atomic<uint64_t> inside_{0};
  std::vector<std::thread> threads_;
};

}  // namespace refrain::backend::cpu
