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
    : start_(std::move(start)),
      host_failure_(std::make_shared<const Failure>(
          Failure{{}, "it waited for a host point, and the host signals no more"})) {
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
  // A worker that notes failures has nobody to tell that memory is short.
  const size_t room = queue.failed.size() + queue.ring.size();
  if (queue.failed.capacity() < room) queue.failed.reserve(2 * room);
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
    entry.after.assign(submission.after.begin(), submission.after.end());
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

// The next submission of a queue to complete has failed.
void Scheduler::fail_next(Queue& queue, std::shared_ptr<const Failure> failure, bool ran) noexcept {
  const uint64_t value = queue.completed.load(std::memory_order_relaxed) + 1;
  if (!ran && !queue.failed.empty() && queue.failed.back().last + 1 == value &&
      queue.failed.back().failure == failure) {
    queue.failed.back().last = value;
  } else {
    queue.failed.push_back({value, value, ran, std::move(failure)});  // there is room
  }
  any_failed_.store(true, std::memory_order_relaxed);
}

const Scheduler::Failed* Scheduler::find_failed(const Queue& queue, uint64_t value) {
  const auto found = std::partition_point(queue.failed.begin(), queue.failed.end(),
                                          [&](const Failed& failed) { return failed.last < value; });
  return found == queue.failed.end() || found->first > value ? nullptr : &*found;
}

bool Scheduler::has_failed(const Point& point) const {
  if (point.queue == kHostQueue) return host_ended_ && !reached(point);
  return find_failed(queues_[point.queue], point.value) != nullptr;
}

// Of a point that has failed.
const std::shared_ptr<const Scheduler::Failure>& Scheduler::failure_of(const Point& point) const {
  return point.queue == kHostQueue ? host_failure_ : find_failed(queues_[point.queue], point.value)->failure;
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

// Ends, without running them, the submissions of stopped queues and those that wait for one that failed. Whoever may
// be waiting for one of them is told by the caller of take_next(): within its own submit() nobody knows it yet.
void Scheduler::end_failed() {
  if (!any_failed_.load(std::memory_order_relaxed)) return;
  for (bool more = true; more;) {
    more = false;
    for (uint32_t index = 0; index < kQueueCount; ++index) {
      Queue& queue = queues_[index];
      while (queue.started < queue.submitted && (running_ == nullptr || running_queue_ != index)) {
        if (queue.stopped) {
          fail_next(queue, queue.stopper, false);
        } else {
          const Entry& entry = *queue.ring[queue.started % queue.ring.size()];
          const auto failed = std::find_if(entry.waits.begin(), entry.waits.end(),
                                           [&](const Point& point) { return has_failed(point); });
          if (failed == entry.waits.end()) break;
          fail_next(queue, failure_of(*failed), false);
        }
        ++queue.started;
        queue.completed.store(queue.started, std::memory_order_release);
        more = true;
      }
    }
  }
}

// Throws when a point has failed. With the mutex held.
void Scheduler::check_failure(const Point& point) const {
  if (!has_failed(point)) return;
  if (point.queue == kHostQueue) {
    throw DeviceError("cpu: the host signals no more, and has not signalled " + std::to_string(point.value));
  }
  const Failed& failed = *find_failed(queues_[point.queue], point.value);
  static const Failure kUnknown{"a submission", {}};
  const Failure& failure = failed.failure != nullptr ? *failed.failure : kUnknown;
  std::string text = "cpu: ";
  if (!failed.ran || point.value != failed.first) {
    text += "did not run: ";
    if (!failure.submission.empty()) text += failure.submission + " failed: ";
  }
  throw DeviceError(text + (failure.what.empty() ? "there was no memory to say why" : failure.what));
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
    const Entry& entry = *queue.ring[queue.started % queue.ring.size()];
    const auto all_reached = [&](const std::vector<Point>& points) {
      return std::all_of(points.begin(), points.end(), [&](const Point& point) { return reached(point); });
    };
    if (all_reached(entry.waits) && all_reached(entry.after)) next = index;
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
      queue.stopped = true;
      queue.stopper = running_failure();
      fail_next(queue, queue.stopper, true);
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
  const auto ended = [&] { return reached(point) || (point.queue == kHostQueue && host_ended_); };
  if (!ended()) {
    if (timeout.count() <= 0) return false;
    ++waiters_;
    if (timeout >= kEndless) {
      changed_.wait(lock, ended);
    } else {
      changed_.wait_for(lock, timeout, ended);
    }
    --waiters_;
    if (closing_ && waiters_ == 0) changed_.notify_all();
    if (!ended()) return false;
  }
  check_failure(point);
  return true;
}

void Scheduler::signal_host(uint64_t value) {
  Entry* next = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (host_ended_ || value <= host_.load(std::memory_order_relaxed)) return;
    host_.store(value, std::memory_order_release);
    next = take_next();
    if (waiters_ > 0) changed_.notify_all();
  }
  if (next != nullptr) start_entry(*next);
}

void Scheduler::end_host() {
  Entry* next = nullptr;
  {
    const std::lock_guard lock(mutex_);
    host_ended_ = true;
    any_failed_.store(true, std::memory_order_relaxed);
    next = take_next();
    if (waiters_ > 0) changed_.notify_all();
  }
  if (next != nullptr) start_entry(*next);
}

void Scheduler::recover(uint32_t queue) {
  const std::lock_guard lock(mutex_);
  queues_[queue].stopped = false;
  queues_[queue].stopper = nullptr;
}

void Scheduler::close() {
  end_host();
  std::unique_lock lock(mutex_);
  closing_ = true;
  // Points are of earlier submissions, and the host's have ended: what is left either runs or fails, so that when
  // nothing runs nothing is left.
  changed_.wait(lock, [&] { return running_ == nullptr && waiters_ == 0; });
}

}  // namespace refrain::backend::cpu
