// The queues of one GPU: a stream each, and a word of pinned memory in which the stream counts what has completed. What
// waits for a point that nobody has yet launched or signalled is held back here, so that no stream is ever stuck.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/backend/cuda/executable.h"
#include "refrain/backend/cuda/health.h"
#include "refrain/backend/cuda/staging.h"

namespace refrain::backend::cuda {

class Queues {
 public:
  static constexpr uint32_t kCount = 4;

  /// Priorities of the first queues, 0 of the others.
  Queues(int ordinal, std::span<const int32_t> priorities, Health& health);
  ~Queues();

  uint64_t submit(const CudaExecutable& program, const Submission& submission);
  uint64_t completed(uint32_t queue) const noexcept;
  bool wait(const Point& point, std::chrono::nanoseconds timeout);
  void signal_host(uint64_t value) noexcept;
  void end_host() noexcept;
  void recover(uint32_t queue) noexcept;
  /// Ends the host's timeline, and returns when all submissions have ended and nobody is in wait() any more.
  void close() noexcept;
  /// The submissions that have not completed, the oldest of each queue: "; under way: submission 3 of queue 0 'decode'".
  std::string under_way() const;

 private:
  static constexpr size_t kKept = 64;
  struct Copy {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    size_t bytes = 0;
  };
  struct Held {
    const CudaExecutable* program = nullptr;
    std::vector<Point> waits;
    std::vector<Point> after;
    std::vector<Copy> copies;
  };
  // The first of those that follow from each other.
  struct Failure {
    std::string submission;  // that was refused: "submission 3 of queue 0 'decode'"; empty: none was
    std::string what;
  };
  // Submissions that failed one after the other for the same reason.
  struct Failed {
    uint64_t first = 0;
    uint64_t last = 0;
    bool refused = false;                    // the first was, and so it failed by itself
    std::shared_ptr<const Failure> failure;  // null: there was no memory for it
  };
  struct Queue {
    cudaStream_t stream = nullptr;
    std::atomic<uint64_t> submitted{0};
    uint64_t decided = 0;                        // launched, or failed
    std::deque<Held> held;                       // in order, behind what has been decided
    std::vector<Failed> failed;                  // ascending; has room for all that is held
    bool stopped = false;                        // by one that was refused: those behind it do not run
    std::shared_ptr<const Failure> stopper;      // why; null: there was no memory for it
    const CudaExecutable* programs[kKept] = {};  // of the last submissions, by value
    std::vector<Copy> copies;                    // of the submission that is being made
    Staging staging;
  };

  uint64_t word(uint32_t queue) const noexcept;
  uint64_t ended(uint32_t queue) const noexcept;
  static const Failed* find_failed(const Queue& queue, uint64_t value) noexcept;
  bool has_failed(const Point& point) const noexcept;
  bool ready(const Point& point) const noexcept;
  void query(uint32_t queue) noexcept;
  void launch(uint32_t index, const CudaExecutable& program, std::span<const Copy> copies,
              std::span<const Point> waits, std::span<const Point> after);
  void order_behind(uint32_t index, const Point& point);
  void fail_next(Queue& queue, std::shared_ptr<const Failure> failure, bool refused) noexcept;
  std::shared_ptr<const Failure> refusal(uint32_t index, const std::exception& error) const noexcept;
  bool advance_queue(uint32_t index) noexcept;
  void advance() noexcept;
  std::string name(uint32_t index, uint64_t value) const;
  void check_failure(const Point& point) const;

  const int ordinal_;
  Health& health_;
  const std::shared_ptr<const Failure> host_failure_;
  mutable std::recursive_mutex mutex_;  // under_way() is asked for by calls made with it held
  Queue queues_[kCount];
  uint64_t* words_ = nullptr;  // pinned, one a queue, kWordStride apart; written by the streams
  std::atomic<uint64_t> host_{0};
  std::atomic<bool> host_ended_{false};
  std::atomic<bool> any_failed_{false};  // once something has
  std::atomic<uint32_t> waiters_{0};
  mutable std::atomic<uint32_t> polls_{0};
  PFN_cuStreamWriteValue64_v11070 write_value_ = nullptr;
  PFN_cuStreamWaitValue64_v11070 wait_value_ = nullptr;
};

}  // namespace refrain::backend::cuda
