// A backend whose submissions complete, fail or stay open as a test says, and that notes what it was asked.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/core/error.h"

namespace refrain::null_tests {

class ControlledBackend : public backend::Backend {
 public:
  explicit ControlledBackend(std::span<const backend::Kernel> table, bool host_memory = true)
      : Backend(describe(host_memory), table), host_memory_(host_memory) {}
  ~ControlledBackend() override { EXPECT_TRUE(memory_.empty()) << "memory was not released"; }

  // What a test may do and see.
  void complete(uint32_t queue, uint64_t value) {
    const std::lock_guard lock(mutex_);
    completed_[queue] = value;
    changed_.notify_all();
  }
  void refuse_next_submit() { refuse_submit_ = true; }
  void refuse_writes(bool refuse) { refuse_write_ = refuse; }
  /// The submission, and with it what has been submitted to its queue since, fails and so ends.
  void fail(uint32_t queue, uint64_t value) {
    const std::lock_guard lock(mutex_);
    for (uint64_t v = value; v <= submitted_[queue]; ++v) failed_.insert({queue, v});
    completed_[queue] = submitted_[queue];
    changed_.notify_all();
  }
  void lose() {
    const std::lock_guard lock(mutex_);
    lost_ = true;
    changed_.notify_all();
  }
  /// Threads in wait().
  size_t waiters() const {
    const std::lock_guard lock(mutex_);
    return waiters_;
  }
  size_t live_programs() const { return static_cast<size_t>(*programs_); }
  size_t live_allocations() const {
    const std::lock_guard lock(mutex_);
    return memory_.size();
  }
  std::vector<std::pair<backend::BufferView, std::vector<std::byte>>> updates;
  std::vector<backend::Point> waits, after;     // of the last submission
  std::vector<const backend::Executable*> ran;  // of each submission
  backend::ExecutableOptions prepared;
  std::vector<std::pair<backend::Advice, backend::BufferView>> advised;
  std::function<void()> before_completed;              ///< called by completed()
  std::function<void()> at_poll;                       ///< called by a wait() of no time, before it looks
  std::function<void(const backend::Point&)> at_wait;  ///< called by any other wait(), before it looks
  std::function<void()> at_allocate;                   ///< called by allocate(), once
  std::function<void()> at_prepare;                    ///< called by prepare(), once
  std::function<void(uint32_t)> at_submit;             ///< called by submit(), with its queue
  /// The points and the times of wait(), those of no time left out. To be read while nobody waits.
  std::vector<std::pair<backend::Point, std::chrono::nanoseconds>> timeouts;

  const backend::Allocation* allocate(const backend::BufferSpec& spec) override {
    if (const auto call = std::exchange(at_allocate, nullptr)) call();
    if (spec.bytes > (size_t{1} << 40)) throw DeviceError("controlled: out of memory");
    auto allocation = std::make_unique<Memory>();
    allocation->storage.resize(spec.bytes + 64);
    allocation->bytes = spec.bytes;
    const std::lock_guard lock(mutex_);
    allocation->id = ++last_id_;
    if (lost_) throw DeviceLost("controlled: lost");
    const bool import = spec.kind == backend::MemoryKind::import_host;
    if (import && !host_memory_) throw DeviceError("controlled: no imports");
    if (host_memory_ || spec.kind == backend::MemoryKind::host)
      allocation->host = import ? spec.host : allocation->storage.data();
    const backend::Allocation* key = allocation.get();
    memory_.emplace(key, std::move(allocation));
    return key;
  }
  void release(const backend::Allocation* allocation) noexcept override {
    const std::lock_guard lock(mutex_);
    memory_.erase(allocation);
  }
  backend::MemoryUsage memory() const override { return {memory_.size(), 1000}; }
  void write(const backend::BufferView& to, std::span<const std::byte> from) override {
    if (refuse_write_) throw DeviceError("controlled: no staging");
    std::ranges::copy(from, bytes_of(to));
  }
  void read(const backend::BufferView& from, std::span<std::byte> to) const override {
    std::copy_n(bytes_of(from), to.size(), to.begin());
  }
  std::unique_ptr<backend::Executable> prepare(const backend::PlanData&,
                                               const backend::ExecutableOptions& options) override {
    prepared = options;
    if (const auto call = std::exchange(at_prepare, nullptr)) call();
    return std::make_unique<Counted>(programs_, options.queue);
  }
  backend::Point submit(const backend::Submission& submission) override {
    if (at_submit) at_submit(static_cast<const Counted*>(submission.program)->queue);
    if (refuse_submit_.exchange(false)) throw DeviceError("controlled: refused");
    const std::lock_guard lock(mutex_);
    if (lost_) throw DeviceLost("controlled: lost");
    for (const backend::UpdateData& update : submission.updates) {
      updates.emplace_back(update.to, std::vector(update.from.begin(), update.from.end()));
    }
    waits.assign(submission.waits.begin(), submission.waits.end());
    after.assign(submission.after.begin(), submission.after.end());
    ran.push_back(submission.program);
    const uint32_t queue = static_cast<const Counted*>(submission.program)->queue;
    const uint64_t value = ++submitted_[queue];
    for (const backend::Point& point : waits) {
      if (point.queue == backend::kHostQueue) host_waits_[{queue, value}] = point.value;
    }
    return {id, queue, value};
  }
  void advise(std::span<const backend::BufferView> views, backend::Advice advice) override {
    for (const backend::BufferView& view : views) advised.emplace_back(advice, view);
  }
  uint64_t completed(uint32_t queue) const override {
    if (before_completed) before_completed();
    const std::lock_guard lock(mutex_);
    if (lost_ && submitted_.contains(queue)) return submitted_.at(queue);
    const auto found = completed_.find(queue);
    return found == completed_.end() ? 0 : found->second;
  }
  bool wait(const backend::Point& point, std::chrono::nanoseconds timeout) override {
    if (timeout.count() == 0 && at_poll) at_poll();
    if (timeout.count() != 0 && at_wait) at_wait(point);
    std::unique_lock lock(mutex_);
    if (timeout.count() != 0) timeouts.emplace_back(point, timeout);
    const auto done = [&] { return lost_ || completed_[point.queue] >= point.value; };
    ++waiters_;
    const bool reached = changed_.wait_until(lock, std::chrono::system_clock::now() + timeout, done);
    --waiters_;
    if (lost_) throw DeviceLost("controlled: lost");
    if (reached && failed_.contains({point.queue, point.value}))
      throw DeviceError("controlled: submission failed");
    return reached;
  }
  void signal_host(uint64_t value) override {
    const std::lock_guard lock(mutex_);
    completed_[backend::kHostQueue] = std::max(completed_[backend::kHostQueue], value);
    changed_.notify_all();
  }
  // What nobody will complete is complete once the host lets everything go; what waited for the host has failed.
  void end_host() noexcept override {
    const std::lock_guard lock(mutex_);
    for (const auto& [which, value] : host_waits_) {
      if (value > completed_[backend::kHostQueue] && which.second > completed_[which.first])
        failed_.insert(which);
    }
    for (const auto& [queue, last] : submitted_) completed_[queue] = last;
    changed_.notify_all();
  }
  void recover(uint32_t) noexcept override {}  // what is submitted after a failure runs in any case
  void timestamps(const backend::Executable&, std::span<backend::TickSpan> spans) const override {
    for (size_t i = 0; i < spans.size(); ++i) spans[i] = {i * 10, i * 10 + 2, i * 10 + 5};
  }

 private:
  struct Memory : backend::Allocation {
    std::vector<std::byte> storage;
  };
  struct Counted : backend::Executable {
    Counted(std::shared_ptr<int> all, uint32_t on) : count(std::move(all)), queue(on) { ++*count; }
    ~Counted() override { --*count; }
    std::shared_ptr<int> count;
    const uint32_t queue;
  };

  static backend::DeviceInfo describe(bool host_memory) {
    backend::DeviceInfo info;
    info.backend = "controlled";
    info.queue_count = 2;
    info.ns_per_tick = 2.0;
    info.host_memory = host_memory;
    return info;
  }

  // Of what may be out of the host's reach.
  std::byte* bytes_of(const backend::BufferView& view) const {
    const std::lock_guard lock(mutex_);
    auto* imported = static_cast<std::byte*>(view.allocation->host);
    return (imported != nullptr ? imported : memory_.at(view.allocation)->storage.data()) + view.offset_bytes;
  }

  const bool host_memory_;
  std::atomic<bool> refuse_submit_ = false;  // several threads submit
  bool refuse_write_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<const backend::Allocation*, std::unique_ptr<Memory>> memory_;
  std::map<uint32_t, uint64_t> completed_, submitted_;
  std::set<std::pair<uint32_t, uint64_t>> failed_;
  std::map<std::pair<uint32_t, uint64_t>, uint64_t> host_waits_;  // queue and value: the host point
  bool lost_ = false;
  size_t waiters_ = 0;
  std::shared_ptr<int> programs_ = std::make_shared<int>(0);
  uint64_t last_id_ = 0;
};

}  // namespace refrain::null_tests
