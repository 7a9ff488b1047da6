// How something is submitted: its order behind what other queues have in flight, its place in its queue.
#include "refrain/device/submissions.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "refrain/core/deadline.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

using Touch = graph::AccessSummary::Entry;

// Submissions with more updates or waits than this allocate; a step block is one update.
constexpr size_t kInlineUpdates = 8;
constexpr size_t kInlineWaits = 16;

std::string in_quotes(const std::string& label) {
  return label.empty() ? label : fmt::format(" '{}'", label);
}

bool overlap(const Touch& a, const Touch& b) {
  return a.allocation == b.allocation && std::max(a.begin, b.begin) < std::min(a.end, b.end) &&
         backend::conflict(a.effect, b.effect);
}

/// True when `range` conflicts with what `summary` names; its entries are sorted and disjoint.
bool touches(const graph::AccessSummary& summary, const Touch& range) {
  auto entry = std::ranges::partition_point(summary.entries, [&](const Touch& e) {
    return e.allocation < range.allocation || (e.allocation == range.allocation && e.end <= range.begin);
  });
  for (; entry != summary.entries.end() && entry->allocation == range.allocation && entry->begin < range.end;
       ++entry) {
    if (overlap(*entry, range)) return true;
  }
  return false;
}

/// A list that begins on the stack.
template <class T, size_t N>
class Inline {
 public:
  void push_back(const T& value) {
    if (size_ == N && more_.empty()) more_.assign(few_.begin(), few_.end());
    if (size_ < N) {
      few_[size_] = value;
    } else {
      more_.push_back(value);
    }
    ++size_;
  }
  void resize(size_t size) {
    if (size > N) more_.resize(size);
    size_ = size;
  }
  void clear() {
    more_.clear();
    size_ = 0;
  }
  size_t size() const { return size_; }
  std::span<T> all() { return more_.empty() ? std::span(few_).first(size_) : std::span(more_); }

 private:
  std::array<T, N> few_{};
  std::vector<T> more_;
  size_t size_ = 0;
};

}  // namespace

struct Submissions::After : Inline<Point, kInlineWaits> {};

Submissions::Submissions(DeviceState& device)
    : device_(device),
      backend_(*device.backend),
      queues_(backend_.info.queue_count),
      completed_(backend_.info.queue_count) {
  spare_ranges_.reserve(64);
}

// Checks the updates, fills in the backend's form of them, and notes what this submission writes and keeps.
Submissions::InFlight Submissions::describe(const std::shared_ptr<Program::State>& program,
                                            std::span<const Update> updates,
                                            std::span<backend::UpdateData> backend_updates) {
  const Program::State& state = *program;
  InFlight entry;
  entry.program = program;
  if (updates.empty()) return entry;
  {
    const std::lock_guard lock(mutex_);
    if (!spare_ranges_.empty()) {
      entry.update_ranges = std::move(spare_ranges_.back());
      spare_ranges_.pop_back();
    }
  }
  entry.update_ranges.reserve(std::max(kInlineUpdates, updates.size()));
  for (size_t i = 0; i < updates.size(); ++i) {
    const Update& update = updates[i];
    if (!update.to || update.to.bytes() != update.from.size()) {
      throw InvalidArgument(fmt::format("[submit] update {}: expected {} bytes, got {}", i,
                                        update.to ? update.to.bytes() : 0, update.from.size()));
    }
    if (&update.to.memory()->backend() != &backend_) {
      throw InvalidArgument(fmt::format("[submit] update {}: expected a buffer of this device", i));
    }
    if (update.to.read_only())
      throw InvalidArgument(
          fmt::format("[submit] update {}: expected memory to write, got a read-only buffer", i));
    const backend::BufferView to = update.to.device_view();
    if (state.arena && state.plan.arena_bytes() != 0 &&
        to.allocation == &state.arena.memory()->allocation() &&
        to.offset_bytes < state.arena.offset_bytes() + state.arena.bytes() &&
        state.arena.offset_bytes() < to.offset_bytes + to.bytes) {
      throw InvalidArgument(
          fmt::format("[submit] update {}: expected memory outside of the program's arena", i));
    }
    backend_updates[i] = {to, update.from};
    entry.update_ranges.push_back(
        {to.allocation->id, to.offset_bytes, to.offset_bytes + to.bytes, backend::Effect::write});
    if (!std::ranges::binary_search(state.kept, update.to.memory().get(), std::less<const void*>()))
      entry.updated.push_back(update.to.memory());
  }
  return entry;
}

// The latest submission in flight on `queue` that conflicts with `accesses` (null: none) or `ranges`, null when
// there is none. What is as old as `born` touches of `ranges` what it names alone. With the mutex held.
const Submissions::InFlight* Submissions::latest_conflict(uint32_t queue,
                                                          const graph::AccessSummary* accesses,
                                                          std::span<const Touch> ranges,
                                                          uint64_t born) const {
  const auto& entries = queues_[queue].entries;
  if (entries.empty()) return nullptr;
  const uint64_t completed = backend_.completed(queue);
  const Program::State* clear = nullptr;  // replays of one program are compared once
  for (size_t i = entries.size(); i-- > 0;) {
    const InFlight& other = entries[i];
    if (other.value <= completed && !other.submitting) return nullptr;
    if (other.program.get() != clear) {
      const graph::AccessSummary& theirs = other.program->touches;
      if (accesses != nullptr && graph::conflicts(*accesses, theirs)) return &other;
      for (const Touch& range : ranges) {
        if ((theirs.unknown && other.place > born) || touches(theirs, range)) return &other;
      }
      clear = other.program.get();
    }
    for (const Touch& write : other.update_ranges) {
      if (accesses != nullptr && (accesses->unknown || touches(*accesses, write))) return &other;
      for (const Touch& own : ranges) {
        if (overlap(own, write)) return &other;
      }
    }
  }
  return nullptr;
}

void Submissions::check_host_access(const char* call, const AllocationHandle& memory, size_t begin,
                                    size_t end, bool write) {
  const Touch range{memory.allocation().id, begin, end,
                    write ? backend::Effect::write : backend::Effect::read};
  {
    const std::lock_guard lock(mutex_);
    for (uint32_t queue = 0; queue < queues(); ++queue) {
      const InFlight* other = latest_conflict(queue, nullptr, {&range, 1}, memory.born());
      if (other == nullptr) continue;
      throw InvalidArgument(fmt::format(
          "{} '{}' is {} by submission {} of queue {}{}, which is in flight: wait for it, or synchronize",
          call, memory.label(), write ? "used" : "written", other->value, queue,
          in_quotes(other->program->label)));
    }
  }
  settle();
}

void Submissions::synchronize(const Buffer& buffer, std::chrono::nanoseconds timeout) {
  const backend::BufferView view = buffer.device_view();
  const Touch write{view.allocation->id, view.offset_bytes, view.offset_bytes + view.bytes,
                    backend::Effect::write};
  const auto deadline = deadline_after(timeout);
  for (uint32_t queue = 0; queue < queues(); ++queue) {
    uint64_t value = 0;
    {
      std::unique_lock lock(mutex_);
      const InFlight* other = nullptr;
      do {
        other = latest_conflict(queue, nullptr, {&write, 1}, buffer.memory()->born());
        if (other == nullptr || !other->submitting) break;
        accepted_.wait(lock);
      } while (true);
      if (other != nullptr) value = other->value;
    }
    if (value == 0) continue;
    const std::chrono::nanoseconds left = deadline - std::chrono::steady_clock::now();
    await({backend_.id, queue, value}, std::max(left, std::chrono::nanoseconds(0)));
  }
  settle();
  buffer.memory()->check_defined("[synchronize]", view.offset_bytes, view.offset_bytes + view.bytes);
}

// What has to complete before `queue` has a place, 0 when it has one.
uint64_t Submissions::in_the_way(uint32_t queue) const {
  const uint64_t value = last(queue), limit = device_.options.in_flight_limit;
  if (limit == 0 || value < limit) return 0;
  return backend_.completed(queue) >= value - limit + 1 ? 0 : value - limit + 1;
}

void Submissions::make_room(uint32_t queue, std::chrono::steady_clock::time_point until) {
  uint64_t value = in_the_way(queue);
  if (value == 0) return;
  device_.counters.change([](Counters& counters) { ++counters.throttled; });
  for (; value != 0; value = in_the_way(queue)) {
    const std::chrono::nanoseconds left = until - std::chrono::steady_clock::now();
    try {
      if (device_.guarded([&] {
            return backend_.wait({backend_.id, queue, value}, std::max(left, std::chrono::nanoseconds(0)));
          }))
        continue;
    } catch (const DeviceLost&) {
      throw;
    } catch (const DeviceError&) {
      settle();  // and so it has ended
      continue;
    }
    const std::lock_guard lock(mutex_);
    throw TimeoutError(fmt::format(
        "[submit] queue {}: {} submissions are in flight, as many as in_flight_limit allows, and no place "
        "came free within {} ms; the oldest is {}",
        queue, device_.options.in_flight_limit,
        std::chrono::duration_cast<std::chrono::milliseconds>(device_.options.patience).count(),
        obstacle(queue)));
  }
}

// What the oldest submission in flight on `queue` waits for, and what that waits for. With the mutex held.
std::string Submissions::obstacle(uint32_t queue) const {
  std::string text;
  // Points are waited for in the order of their submissions, so this ends; a few say enough.
  for (size_t depth = 0; depth < 4; ++depth) {
    const uint64_t completed = backend_.completed(queue);
    const auto& entries = queues_[queue].entries;
    const InFlight* oldest = nullptr;
    for (size_t i = 0; i < entries.size() && oldest == nullptr; ++i) {
      if (entries[i].value > completed) oldest = &entries[i];
    }
    const std::string_view joint = depth == 0 ? "" : ", which waits for ";
    if (oldest == nullptr) return fmt::format("{}{}what has just completed", text, joint);
    text += fmt::format("{}submission {} of queue {}{}", joint, oldest->value, queue,
                        in_quotes(oldest->program->label));
    const auto unreached = std::ranges::find_if(
        oldest->awaited, [&](const Awaited& point) { return backend_.completed(point.queue) < point.value; });
    if (unreached == oldest->awaited.end()) break;
    if (unreached->queue == backend::kHostQueue) {
      return text +
             fmt::format(", which waits for host point {}, which nobody has signalled", unreached->value);
    }
    queue = unreached->queue;
  }
  return text;
}

// The latest unreached point of each timeline.
void Submissions::note_awaited(std::span<const Point> waits, InFlight& entry) const {
  for (const Point& point : waits) {
    if (backend_.completed(point.queue) >= point.value) continue;
    for (Awaited& noted : entry.awaited) {
      if (noted.value != 0 && noted.queue != point.queue) continue;
      noted = {point.queue, std::max(noted.value, point.value)};
      break;
    }
  }
}

// What `entry` has to come after on other queues. Gives up the mutex while one of them is being submitted.
void Submissions::derive_after(const InFlight& entry, std::span<const Point> given, After& after,
                               std::unique_lock<std::mutex>& lock) {
  for (uint32_t queue = 0; queue < queues(); ++queue) {
    if (queue == entry.program->queue) continue;
    const InFlight* other = latest_conflict(queue, &entry.program->touches, entry.update_ranges, 0);
    if (other == nullptr) continue;
    if (other->submitting) {
      accepted_.wait(lock);
      after.clear();
      queue = UINT32_MAX;  // from the beginning
      continue;
    }
    const bool waited_for = std::ranges::any_of(
        given, [&](const Point& p) { return p.queue == queue && p.value >= other->value; });
    if (!waited_for) after.push_back({backend_.id, queue, other->value});
  }
}

Point Submissions::submit(const std::shared_ptr<Program::State>& program, std::span<const Update> updates,
                          std::span<const Point> waits, Limit limit) {
  reap();
  Inline<backend::UpdateData, kInlineUpdates> backend_updates;
  backend_updates.resize(updates.size());
  InFlight entry = describe(program, updates, backend_updates.all());
  uint64_t update_bytes = 0;
  for (const Update& update : updates) update_bytes += update.from.size();

  Queue& queue = queues_[program->queue];
  std::unique_lock turn(queue.turn);
  for (std::optional<std::chrono::steady_clock::time_point> until;
       limit == Limit::to_check && in_the_way(program->queue) != 0;) {
    turn.unlock();
    if (!until) until = deadline_after(device_.options.patience);
    make_room(program->queue, *until);
    turn.lock();
  }
  if (queue.nothing == nullptr && device_.undefined->any()) {
    queue.nothing = device_.guarded([&] { return backend_.prepare(empty_plan_, {.queue = program->queue}); });
  }

  After after;
  backend::Submission submission{program->program.get(), backend_updates.all(), waits, {}};
  {
    std::unique_lock lock(mutex_);
    derive_after(entry, waits, after, lock);
    submission.after = after.all();
    note_awaited(waits, entry);
    note_awaited(after.all(), entry);
    entry.value = last(program->queue) + 1;
    entry.place = place() + 1;
    entry.submitting = true;
    entry.doomed = queue.nothing != nullptr && doomed(entry);
    // In its place in the order, so that its verdict finds those of all that it comes after.
    if (entry.doomed) submission = {queue.nothing.get(), {}, {}, after.all()};
    const uint64_t place = entry.place;
    // Held before it runs: nothing may fail between the two.
    queue.entries.push_back(std::move(entry));
    place_.store(place, std::memory_order_release);
  }
  Point made;
  try {
    made = device_.guarded([&] { return backend_.submit(submission); });
  } catch (...) {
    const std::lock_guard lock(mutex_);
    queue.entries.pop_back();
    accepted_.notify_all();
    throw;
  }
  {
    const std::lock_guard lock(mutex_);
    queue.entries.back().value = made.value;
    queue.entries.back().submitting = false;
    queue.submitted.store(made.value, std::memory_order_release);
    accepted_.notify_all();
  }
  device_.counters.change([&](Counters& counters) {
    ++counters.submissions;
    counters.commands_submitted += program->commands;
    counters.fences_submitted += program->fences;
    counters.updates += updates.size();
    counters.update_bytes += update_bytes;
    counters.waits_given += waits.size();
    counters.waits_derived += after.size();
  });
  return made;
}

}  // namespace refrain
