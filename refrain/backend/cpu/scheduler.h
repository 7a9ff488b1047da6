// The queues of the CPU backend: which submission runs next, which points have been reached, who waits for
// them. Runs one submission at a time on the team; owns no thread.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/backend/cpu/executable.h"

namespace refrain::backend::cpu {

class Scheduler {
 public:
  static constexpr uint32_t kQueueCount = 4;

  /// `start` gives a program to the team, which answers with complete(). `priorities`: of the first queues, at
  /// most kQueueCount; 0 for the others.
  Scheduler(std::function<void(const CpuExecutable&)> start, std::span<const int32_t> priorities);

  uint64_t submit(const CpuExecutable& program, const Submission& submission);
  /// The submission that was started last has been run. Called by a worker.
  void complete();
  uint64_t completed(uint32_t queue) const;
  bool wait(const Point& point, std::chrono::nanoseconds timeout);
  void signal_host(uint64_t value);
  void end_host();
  void recover(uint32_t queue);
  /// Ends the host's timeline, and returns when all submissions have ended and nobody is in wait() any more.
  void close();

 private:
  struct Copy {
    std::byte* to = nullptr;
    size_t offset_bytes = 0;  // in Entry::bytes
    size_t size_bytes = 0;
  };
  // The first of those that follow from each other.
  struct Failure {
    std::string submission;  // that ran: "submission 3 of queue 0 'decode'"; empty: none did
    std::string what;        // empty: there was no memory for it
  };
  // Submissions that failed one after the other for the same reason.
  struct Failed {
    uint64_t first = 0;
    uint64_t last = 0;
    bool ran = false;                        // the first did, and so it failed by itself
    std::shared_ptr<const Failure> failure;  // null: there was no memory for it
  };
  // A submission. Kept and used again, so that its vectors keep their capacity.
  struct Entry {
    const CpuExecutable* program = nullptr;
    std::vector<Point> waits;
    std::vector<Point> after;
    std::vector<Copy> copies;
    std::vector<std::byte> bytes;
  };
  struct Queue {
    int32_t priority = 0;
    uint32_t last = 0;                         // the queue of this priority that was started last
    std::vector<std::unique_ptr<Entry>> ring;  // a power of two
    uint64_t submitted = 0;
    uint64_t started = 0;
    std::atomic<uint64_t> completed{0};
    std::vector<Failed> failed;              // ascending; has room for all that is in flight
    bool stopped = false;                    // by the failure of one that ran: those behind it do not run
    std::shared_ptr<const Failure> stopper;  // that failure; null: there was no memory for it
  };

  Entry& new_entry(Queue& queue);
  bool reached(const Point& point) const;
  Entry* take_next();
  void end_failed();
  void fail_next(Queue& queue, std::shared_ptr<const Failure> failure, bool ran) noexcept;
  static const Failed* find_failed(const Queue& queue, uint64_t value);
  bool has_failed(const Point& point) const;
  const std::shared_ptr<const Failure>& failure_of(const Point& point) const;
  std::shared_ptr<const Failure> running_failure() const noexcept;
  void check_failure(const Point& point) const;
  void start_entry(const Entry& entry);

  const std::function<void(const CpuExecutable&)> start_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Queue, kQueueCount> queues_;
  std::atomic<uint64_t> host_{0};
  const CpuExecutable* running_ = nullptr;
  uint32_t running_queue_ = 0;
  uint32_t waiters_ = 0;
  bool closing_ = false;
  bool host_ended_ = false;
  const std::shared_ptr<const Failure> host_failure_;
  std::atomic<bool> any_failed_{false};  // once something has
};

}  // namespace refrain::backend::cpu
