// Every change of state is made under one mutex; it is held for a few assignments and never while work runs.
#include "refrain/backend/cpu/scheduler.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "refrain/core/error.h"

namespace refrain::backend::cpu {
namespace {

constexpr size_t kFirstRing = 16;  // submissions in flight before a queue's ring grows

// Longer waits than this have no end: now + timeout must not overflow.
constexpr std::chrono::nanoseconds kEndless = std::chrono::hours(24 * 365);

}  // namespace

Scheduler::Scheduler(std::function<void(const CpuExecutable&)> start, std::span<const int32_t> priorities)
    : start_(std::move(start)) {
  for (size_t i = 0; i < priorities.size(); ++i) queues_[i].priority = priorities[i];
}

Scheduler::Entry& Scheduler::new_entry(Queue& queue) {
  const uint64_t oldest = queue.completed.load(std::memory_order_relaxed);
  if (queue.submitted - oldest == queue.ring.size()) {
    // All that may throw comes first: the old ring stays whole until then.
    std::vector<std::unique_ptr<Entry>> ring(queue.ring.empty() ? kFirstRing : 2 * queue.ring.size());
    for (uint64_t i = queue.submitted; i < oldest + ring.size(); ++i)
      ring[i % ring.size()] = std::make_unique<Entry>();
    for (uint64_t i = oldest; i < queue.submitted; ++i)
      ring[i % ring.size()] = std::move(queue.ring[i % queue.ring.size()]);
    queue.ring = std::move(ring);
  }
  return *queue.ring[queue.submitted % queue.ring.size()];
}

uint64_t Scheduler::submit(const CpuExecutable& program, const Submission& submission) {
  Entry* next = nullptr;
  uint64_t value = 0;
  {
    const std::lock_guard lock(mutex_);
    Queue& queue = queues_[program.queue];
    Entry& entry = new_entry(queue);
    entry.program = &program;
    entry.waits.assign(submission.waits.begin(), submission.waits.end());
    entry.copies.clear();
    entry.bytes.clear();
    for (const UpdateData& update : submission.updates) {
      auto* to = host_bytes(update.to);
      entry.copies.push_back({to, entry.bytes.size(), update.from.size()});
      entry.bytes.insert(entry.bytes.end(), update.from.begin(), update.from.end());
    }
    value = ++queue.submitted;
    next = take_next();
  }
  if (next != nullptr) start_entry(*next);
  return value;
}

bool Scheduler::reached(const Point& point) const { return completed(point.queue) >= point.value; }

// The next submission of a queue has failed, and with it all later ones.
void Scheduler::fail(Queue& queue, std::shared_ptr<const Failure> failure) noexcept {
  queue.failed_from = queue.completed.load(std::memory_order_relaxed) + 1;
  queue.failure = std::move(failure);
  any_failed_.store(true, std::memory_order_relaxed);
}

// Why what runs has failed; null when memory is short, as a worker has nobody to tell that.
std::shared_ptr<const Scheduler::Failure> Scheduler::running_failure() const noexcept try {
  const uint64_t value = completed(running_queue_) + 1;
  std::string name = "submission " + std::to_string(value) + " of queue " + std::to_string(running_queue_);
  if (!running_->label.empty()) name += " '" + running_->label + "'";
  return std::make_shared<const Failure>(Failure{std::move(name), running_->take_failure()});
} catch (const std::bad_alloc&) {
  (void)running_->take_failure();
  return nullptr;
}

// Ends, without running them, the submissions of failed queues and those that wait for one that failed.
void Scheduler::end_failed() {
  if (!any_failed_.load(std::memory_order_relaxed)) return;
  bool ended = false;
  for (bool more = true; more;) {
    more = false;
    for (uint32_t index = 0; index < kQueueCount; ++index) {
      Queue& queue = queues_[index];
      while (queue.started < queue.submitted && (running_ == nullptr || running_queue_ != index)) {
        if (queue.failed_from == UINT64_MAX) {
          const Entry& entry = *queue.ring[queue.started % queue.ring.size()];
          const auto failed = std::find_if(entry.waits.begin(), entry.waits.end(), [&](const Point& point) {
            return point.queue != kHostQueue && point.value >= queues_[point.queue].failed_from;
          });
          if (failed == entry.waits.end()) break;
          fail(queue, queues_[failed->queue].failure);
        }
        ++queue.started;
        queue.completed.store(queue.started, std::memory_order_release);
        more = ended = true;
      }
    }
  }
  if (ended && waiters_ > 0) changed_.notify_all();
}

// Throws when a point that has been reached has failed. With the mutex held.
void Scheduler::check_failure(const Point& point) const {
  if (point.queue == kHostQueue) return;
  const Queue& queue = queues_[point.queue];
  if (point.value < queue.failed_from) return;
  static const Failure kUnknown{"a submission", {}};
  const Failure& failure = queue.failure != nullptr ? *queue.failure : kUnknown;
  const bool ran = point.value == queue.failed_from && queue.ran;
  throw DeviceError((ran ? "cpu: " : "cpu: did not run: " + failure.submission + " failed: ") +
                    (failure.what.empty() ? "there was no memory to say why" : failure.what));
}

// If the team is free: of the heads of queues whose points have all been reached, one of the highest priority;
// of these the one whose turn it is.
Scheduler::Entry* Scheduler::take_next() {
  end_failed();
  if (running_ != nullptr) return nullptr;
  const auto turn = [&](uint32_t index) {
    return (index + 2 * kQueueCount - 1 - queues_[index].last) % kQueueCount;  // 0: the next
  };
  uint32_t next = kQueueCount;
  for (uint32_t index = 0; index < kQueueCount; ++index) {
    const Queue& queue = queues_[index];
    if (queue.started == queue.submitted) continue;
    if (next != kQueueCount) {
      const int32_t best = queues_[next].priority;
      if (queue.priority < best || (queue.priority == best && turn(index) > turn(next))) continue;
    }
    const std::vector<Point>& waits = queue.ring[queue.started % queue.ring.size()]->waits;
    if (std::all_of(waits.begin(), waits.end(), [&](const Point& point) { return reached(point); }))
      next = index;
  }
  if (next == kQueueCount) return nullptr;
  for (Queue& queue : queues_) {
    if (queue.priority == queues_[next].priority) queue.last = next;
  }
  Queue& queue = queues_[next];
  Entry& entry = *queue.ring[queue.started % queue.ring.size()];
  ++queue.started;
  running_ = entry.program;
  running_queue_ = next;
  return &entry;
}

// Outside the mutex: nobody else touches an entry that has been taken, and no other starts meanwhile.
void Scheduler::start_entry(const Entry& entry) {
  for (const Copy& copy : entry.copies) {
    if (copy.size_bytes > 0) std::memcpy(copy.to, entry.bytes.data() + copy.offset_bytes, copy.size_bytes);
  }
  start_(*entry.program);
}

void Scheduler::complete() {
  Entry* next = nullptr;
  bool notify = false;
  {
    const std::lock_guard lock(mutex_);
    if (running_->timestamps) running_->keep_stamps();
    Queue& queue = queues_[running_queue_];
    if (running_->failed()) {
      queue.ran = true;
      fail(queue, running_failure());
    }
    queue.completed.store(queue.completed.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    running_ = nullptr;
    next = take_next();
    notify = waiters_ > 0 || closing_;
    // Under the mutex: once it is free and nothing runs, close() may return and this object may end.
    if (notify) changed_.notify_all();
  }
  if (next != nullptr) start_entry(*next);
}

uint64_t Scheduler::completed(uint32_t queue) const {
  const std::atomic<uint64_t>& value = queue == kHostQueue ? host_ : queues_[queue].completed;
  return value.load(std::memory_order_acquire);
}

bool Scheduler::wait(const Point& point, std::chrono::nanoseconds timeout) {
  // Failures are noted before a point is reached.
  if (reached(point) && !any_failed_.load(std::memory_order_relaxed)) return true;
  std::unique_lock lock(mutex_);
  if (!reached(point)) {
    if (timeout.count() <= 0 && !closed_) return false;
    ++waiters_;
    const auto done = [&] { return reached(point) || closed_; };
    if (timeout >= kEndless) {
      changed_.wait(lock, done);
    } else {
      changed_.wait_for(lock, timeout, done);
    }
    --waiters_;
    if (closed_ && waiters_ == 0) changed_.notify_all();
    if (!reached(point)) {
      if (!closed_) return false;
      if (point.queue == kHostQueue) {
        throw DeviceError("cpu: nobody can signal " + std::to_string(point.value) +
                          " on the host's timeline any more, since the device was closed");
      }
      throw DeviceError(
          "cpu: submission " + std::to_string(point.value) + " of queue " + std::to_string(point.queue) +
          " did not run: it waited for a point that nobody can reach, since the device was closed");
    }
  }
  check_failure(point);
  return true;
}

void Scheduler::signal_host(uint64_t value) {
  Entry* next = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (value <= host_.load(std::memory_order_relaxed)) return;
    host_.store(value, std::memory_order_release);
    next = take_next();
    if (waiters_ > 0) changed_.notify_all();
  }
  if (next != nullptr) start_entry(*next);
}

void Scheduler::close() {
  std::unique_lock lock(mutex_);
  closing_ = true;
  // What runs starts its successor before it is free again, so a free team means that no head can run.
  changed_.wait(lock, [&] { return running_ == nullptr; });
  closed_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return waiters_ == 0; });
}

}  // namespace refrain::backend::cpu
