// How submissions ended: which have failed, and which bytes that leaves undefined.
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "refrain/device/device_state.h"
#include "refrain/device/submissions.h"

namespace refrain {
namespace {

using Touch = graph::AccessSummary::Entry;

/// Calls `each` for the bytes of `range` that no update of the submission writes.
template <class Each>
void each_outside(const Touch& range, std::span<const Touch> updates, const Each& each) {
  if (range.begin >= range.end) return;
  for (size_t i = 0; i < updates.size(); ++i) {
    const Touch& update = updates[i];
    if (update.allocation != range.allocation || update.begin >= range.end || update.end <= range.begin)
      continue;
    Touch before = range, behind = range;
    before.end = std::max(range.begin, update.begin);
    behind.begin = std::min(range.end, update.end);
    each_outside(before, updates.subspan(i + 1), each);
    each_outside(behind, updates.subspan(i + 1), each);
    return;
  }
  each(range);
}

}  // namespace

// Of a program, made when a failure asks for it. With the mutex held.
const graph::ValueSummary& Submissions::values(Program::State& program) {
  if (program.values == nullptr) {
    backend::BufferView arena;
    if (program.plan.arena_bytes() != 0) arena = program.arena.device_view();
    program.values =
        std::make_unique<const graph::ValueSummary>(graph::summarize_values(program.plan.data(), arena));
  }
  return *program.values;
}

// Calls `each` for what a submission reads and did not write itself.
template <class Each>
void Submissions::each_read(const InFlight& entry, const Each& each) {
  for (const Touch& read : values(*entry.program).reads) each_outside(read, entry.update_ranges, each);
}

// True when what has no verdict yet may write `range`. With the mutex held.
bool Submissions::may_be_written(const Touch& range) const {
  const auto reaches = [&](const Touch& other) {
    return other.effect == backend::Effect::write && other.allocation == range.allocation &&
           other.begin < range.end && range.begin < other.end;
  };
  for (const Queue& queue : queues_) {
    for (size_t i = queue.settled_entries; i < queue.entries.size(); ++i) {
      const InFlight& other = queue.entries[i];
      if (std::ranges::any_of(other.program->touches.entries, reaches) ||
          std::ranges::any_of(other.update_ranges, reaches))
        return true;
    }
  }
  return false;
}

// True when a submission that is about to be made reads undefined bytes in any case. With the mutex held.
bool Submissions::doomed(const InFlight& entry) const {
  bool doomed = false;
  each_read(entry, [&](const Touch& read) {
    doomed =
        doomed || (device_.undefined->find(read, entry.place).failure != nullptr && !may_be_written(read));
  });
  return doomed;
}

bool Submissions::all_settled() const {
  return std::ranges::all_of(queues_, [](const Queue& queue) {
    return queue.settled.load(std::memory_order_acquire) == queue.submitted.load(std::memory_order_acquire);
  });
}

// The first in order among those that had completed at the moment of `completed_`.
Submissions::InFlight* Submissions::next_to_settle(uint32_t& queue) {
  InFlight* first = nullptr;
  for (uint32_t q = 0; q < queues(); ++q) {
    Queue& candidate = queues_[q];
    if (candidate.settled_entries == candidate.entries.size()) continue;
    InFlight& entry = candidate.entries[candidate.settled_entries];
    if (entry.submitting || entry.value > completed_[q]) continue;
    if (first != nullptr && first->place < entry.place) continue;
    first = &entry;
    queue = q;
  }
  return first;
}

// Leaves the entry as it was when memory is short. `news` is for the log, without the mutex.
void Submissions::settle(InFlight& entry, uint32_t queue, std::vector<std::string>& news, std::string& loss) {
  const Point point{backend_.id, queue, entry.value};
  Undefined& undefined = *device_.undefined;
  std::string what;
  Undefined::First first;
  try {
    (void)backend_.wait(point, std::chrono::nanoseconds(0));
    if (undefined.any()) {
      each_read(entry, [&](const Touch& read) {
        if (const auto found = undefined.find(read, entry.place); found.place < first.place) first = found;
      });
    }
    if (first.failure != nullptr) what = "reads what a failure left undefined: " + *first.failure;
  } catch (const DeviceLost& error) {
    what = loss = error.what();
  } catch (const DeviceError& error) {
    // By itself, and so ahead of what it reads: behind a failure of its queue it has waited for nothing.
    what = error.what();
  }
  if (!what.empty()) {
    const std::string& label = entry.program->label;
    std::string message =
        fmt::format("[submission] {}{} of queue {}: {}", label.empty() ? "" : fmt::format("'{}', ", label),
                    entry.value, queue, what);
    const Undefined::Failure cause =
        first.failure != nullptr ? first.failure : std::make_shared<const std::string>(message);
    for (const Touch& touch : entry.program->touches.entries) {
      if (touch.effect != backend::Effect::read) undefined.add(touch, entry.place, cause);
    }
    for (const Touch& update : entry.update_ranges) undefined.add(update, entry.place, cause);
    news.push_back(std::move(message));
    try {
      device_.failures.note(point, news.back());
    } catch (...) {
      news.pop_back();
      throw;
    }
    device_.counters.change([](Counters& counters) { ++counters.failures; });
  } else if (undefined.any()) {
    for (const Touch& range : values(*entry.program).whole) undefined.clear(range, entry.place);
    for (const Touch& update : entry.update_ranges) undefined.clear(update, entry.place);
  }
  ++queues_[queue].settled_entries;
  queues_[queue].settled.store(entry.value, std::memory_order_release);
}

void Submissions::settle() {
  if (all_settled()) return;
  std::vector<std::string> news;
  std::string loss;
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    // What has completed at one moment: all that conflicts with it and lies before it is among it, and of
    // two with one byte the first is settled first. Nothing is submitted meanwhile, so this comes to rest.
    for (bool moving = true; moving;) {
      moving = false;
      for (uint32_t queue = 0; queue < queues(); ++queue) {
        if (queues_[queue].settled_entries == queues_[queue].entries.size()) continue;
        const uint64_t value = backend_.completed(queue);
        moving = moving || value != completed_[queue];
        completed_[queue] = value;
      }
    }
    try {
      uint32_t queue = 0;
      while (InFlight* entry = next_to_settle(queue)) settle(*entry, queue, news, loss);
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (!loss.empty()) device_.note_lost(loss);
  for (const std::string& message : news) device_.log(LogLevel::warning, message);
  if (error != nullptr) std::rethrow_exception(error);
}

void Submissions::reap() {
  settle();
  // Programs are destroyed outside the lock: their destructors may release memory and take their time.
  std::array<InFlight, 4> done;
  for (bool more = true; more;) {
    size_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      for (Queue& queue : queues_) {
        for (; queue.settled_entries > 0 && count < done.size(); --queue.settled_entries)
          done[count++] = queue.entries.take_front();
      }
      more = count == done.size();
    }
    for (InFlight& entry : std::span(done).first(count)) {
      std::vector<Touch> ranges = std::move(entry.update_ranges);
      entry = {};
      if (ranges.capacity() == 0) continue;
      ranges.clear();
      const std::lock_guard lock(mutex_);
      if (spare_ranges_.size() < spare_ranges_.capacity()) spare_ranges_.push_back(std::move(ranges));
    }
  }
}

// Label of a submission in flight, else empty.
std::string Submissions::label(const Point& point) const {
  if (point.queue >= queues()) return {};
  const std::lock_guard lock(mutex_);
  const auto& entries = queues_[point.queue].entries;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].value == point.value) return entries[i].program->label;
  }
  return {};
}

std::string Submissions::failure(const Point& point) {
  settle();
  std::string why = device_.failures.find(point);
  return why.empty() && device_.lost ? device_.loss() : why;
}

// Returns once a submission has ended, whichever way; throws the backend's error of it after its verdict.
void Submissions::await(const Point& point, std::chrono::nanoseconds timeout) {
  device_.counters.change([](Counters& counters) { ++counters.host_waits; });
  try {
    if (device_.guarded([&] { return backend_.wait(point, timeout); })) return;
  } catch (const DeviceLost& error) {
    const std::string whose = label(point);
    if (whose.empty()) throw;
    throw DeviceLost(fmt::format("[submission] '{}': {}", whose, error.what()));
  } catch (const DeviceError&) {
    if (point.queue != backend::kHostQueue) return;  // it has ended; how, its verdict says
    throw;
  }
  device_.counters.change([](Counters& counters) { ++counters.timeouts; });
  const std::string whose = label(point);
  throw TimeoutError(fmt::format("[wait] queue {} has not completed submission {}{} within {} ms",
                                 point.queue, point.value, whose.empty() ? "" : fmt::format(" '{}'", whose),
                                 std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count()));
}

void Submissions::wait(const Point& point, std::chrono::nanoseconds timeout) {
  await(point, timeout);
  settle();
  if (!device_.failures.any()) return;
  if (const std::string why = device_.failures.find(point); !why.empty()) throw DeviceError(why);
}

void Submissions::drain() noexcept {
  for (uint32_t queue = 0; queue < queues(); ++queue) {
    // A failed submission has nothing left to run, a lost device neither.
    while (last(queue) != 0 && backend_.completed(queue) < last(queue)) {
      try {
        (void)backend_.wait({backend_.id, queue, last(queue)}, std::chrono::seconds(1));
      } catch (...) {
        // It has ended, or memory is short; then it is waited for again.
      }
    }
  }
  try {
    settle();
  } catch (...) {
    device_.undefined->give_up();
  }
}

}  // namespace refrain
