// Submissions: their order between queues, their completion, their failures.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "refrain/core/deadline.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

using Touch = graph::AccessSummary::Entry;

// Submissions with more updates or waits than this allocate; a step block is one update.
constexpr size_t kInlineUpdates = 8;
constexpr size_t kInlineWaits = 16;

// Failures that are remembered; an older point then fails with the backend's own words.
constexpr size_t kMaxFailures = 1024;

std::string in_quotes(const std::string& label) {
  return label.empty() ? label : fmt::format(" '{}'", label);
}

bool overlap(const Touch& a, const Touch& b) {
  return a.allocation == b.allocation && std::max(a.begin, b.begin) < std::min(a.end, b.end) &&
         backend::conflict(a.effect, b.effect);
}

/// True when `range` conflicts with `summary`, whose entries are sorted and disjoint.
bool touches(const graph::AccessSummary& summary, const Touch& range) {
  if (summary.unknown) return true;
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
  std::span<T> all() { return more_.empty() ? std::span(few_).first(size_) : std::span(more_); }

 private:
  std::array<T, N> few_{};
  std::vector<T> more_;
  size_t size_ = 0;
};

}  // namespace

// Checks the updates, fills in the backend's form of them, and notes what this submission writes and keeps.
DeviceState::InFlight DeviceState::describe(const Program& program, std::span<const Update> updates,
                                            std::span<backend::UpdateData> backend_updates) {
  const Program::State& state = *program.state_;
  InFlight entry;
  entry.program = program.state_;
  if (updates.empty()) return entry;
  {
    const std::lock_guard lock(mutex);
    if (!spare_ranges.empty()) {
      entry.update_ranges = std::move(spare_ranges.back());
      spare_ranges.pop_back();
    }
  }
  entry.update_ranges.reserve(std::max(kInlineUpdates, updates.size()));
  for (size_t i = 0; i < updates.size(); ++i) {
    const Update& update = updates[i];
    if (!update.to || update.to.bytes() != update.from.size()) {
      throw InvalidArgument(fmt::format("[submit] update {}: expected {} bytes, got {}", i,
                                        update.to ? update.to.bytes() : 0, update.from.size()));
    }
    if (&update.to.memory()->backend() != backend.get()) {
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

const DeviceState::InFlight* DeviceState::latest_conflict(uint32_t queue,
                                                          const graph::AccessSummary& accesses,
                                                          std::span<const Touch> ranges) const {
  const auto& entries = in_flight[queue];
  if (entries.empty()) return nullptr;
  const uint64_t completed = backend->completed(queue);
  const Program::State* clear = nullptr;  // replays of one program are compared once
  for (size_t i = entries.size(); i-- > 0;) {
    const InFlight& other = entries[i];
    if (other.value <= completed) return nullptr;
    if (other.program.get() != clear) {
      if (graph::conflicts(accesses, other.program->touches)) return &other;
      for (const Touch& range : ranges) {
        if (touches(other.program->touches, range)) return &other;
      }
      clear = other.program.get();
    }
    for (const Touch& write : other.update_ranges) {
      if (touches(accesses, write)) return &other;
      for (const Touch& own : ranges) {
        if (overlap(own, write)) return &other;
      }
    }
  }
  return nullptr;
}

void DeviceState::check_idle(const char* call, const AllocationHandle& memory, size_t begin, size_t end,
                             bool write) const {
  bool idle = true;
  for (uint32_t queue = 0; queue < submitted.size(); ++queue) {
    const uint64_t last = submitted[queue].load(std::memory_order_acquire);
    idle = idle && (last == 0 || backend->completed(queue) >= last);
  }
  if (idle) return;
  const Touch range{memory.allocation().id, begin, end,
                    write ? backend::Effect::write : backend::Effect::read};
  const std::lock_guard lock(mutex);
  for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
    const InFlight* other = latest_conflict(queue, {}, {&range, 1});
    if (other == nullptr) continue;
    throw InvalidArgument(fmt::format(
        "{} '{}' is {} by submission {} of queue {}{}, which is in flight: wait for it, or synchronize", call,
        memory.label(), write ? "used" : "written", other->value, queue, in_quotes(other->program->label)));
  }
}

std::chrono::steady_clock::time_point DeviceState::deadline() const {
  return deadline_after(options.patience);
}

// What has to complete before `queue` has a place, 0 when it has one.
uint64_t DeviceState::in_the_way(uint32_t queue) const {
  const uint64_t last = submitted[queue].load(std::memory_order_acquire);
  if (options.in_flight_limit == 0 || last < options.in_flight_limit) return 0;
  const uint64_t value = last - options.in_flight_limit + 1;
  return backend->completed(queue) >= value ? 0 : value;
}

void DeviceState::make_room(uint32_t queue, std::chrono::steady_clock::time_point until) {
  uint64_t value = in_the_way(queue);
  if (value == 0) return;
  {
    const std::lock_guard lock(mutex);
    ++counters.throttled;
  }
  for (; value != 0; value = in_the_way(queue)) {
    const std::chrono::nanoseconds left = until - std::chrono::steady_clock::now();
    try {
      if (guarded([&] {
            return backend->wait({backend.get(), queue, value}, std::max(left, std::chrono::nanoseconds(0)));
          }))
        continue;
    } catch (const DeviceLost&) {
      throw;
    } catch (const DeviceError& error) {
      tell_failure({backend.get(), queue, value}, error.what());  // and so it has ended
      continue;
    }
    const std::lock_guard lock(mutex);
    throw TimeoutError(fmt::format(
        "[submit] queue {}: {} submissions are in flight, as many as in_flight_limit allows, and no place "
        "came free within {} ms; the oldest is {}",
        queue, options.in_flight_limit,
        std::chrono::duration_cast<std::chrono::milliseconds>(options.patience).count(), obstacle(queue)));
  }
}

// What the oldest submission in flight on `queue` waits for, and what that waits for. With the mutex held.
std::string DeviceState::obstacle(uint32_t queue) const {
  std::string text;
  // Points are waited for in the order of their submissions, so this ends; a few say enough.
  for (size_t depth = 0; depth < 4; ++depth) {
    const uint64_t completed = backend->completed(queue);
    const InFlight* oldest = nullptr;
    for (size_t i = 0; i < in_flight[queue].size() && oldest == nullptr; ++i) {
      if (in_flight[queue][i].value > completed) oldest = &in_flight[queue][i];
    }
    const std::string_view joint = depth == 0 ? "" : ", which waits for ";
    if (oldest == nullptr) return fmt::format("{}{}what has just completed", text, joint);
    text += fmt::format("{}submission {} of queue {}{}", joint, oldest->value, queue,
                        in_quotes(oldest->program->label));
    const auto unreached = std::ranges::find_if(
        oldest->awaited, [&](const Awaited& point) { return backend->completed(point.queue) < point.value; });
    if (unreached == oldest->awaited.end()) break;
    if (unreached->queue == backend::kHostQueue) {
      return text +
             fmt::format(", which waits for host point {}, which nobody has signalled", unreached->value);
    }
    queue = unreached->queue;
  }
  return text;
}

Point DeviceState::submit(const Program& program, std::span<const Update> updates,
                          std::span<const Point> waits, Limit limit) {
  check_live();
  if (!program) throw InvalidArgument("[submit] program: expected a prepared program, got none");
  Program::State& state = *program.state_;
  if (state.backend != backend)
    throw InvalidArgument("[submit] program: expected one of this device, got another's");
  for (const Point& point : waits) check(point, "submit");
  reap();

  Inline<backend::UpdateData, kInlineUpdates> backend_updates;
  backend_updates.resize(updates.size());
  InFlight entry = describe(program, updates, backend_updates.all());
  uint64_t update_bytes = 0;
  for (const Update& update : updates) update_bytes += update.from.size();

  apply_residency();
  Inline<Point, kInlineWaits> all_waits;
  for (const Point& point : waits) all_waits.push_back(point);
  for (std::optional<std::chrono::steady_clock::time_point> until;;) {
    const std::optional<Point> point = guarded([&]() -> std::optional<Point> {
      const std::lock_guard lock(mutex);
      auto& entries = in_flight[state.queue];
      if (limit == Limit::to_check && entries.size() >= options.in_flight_limit &&
          in_the_way(state.queue) != 0)
        return std::nullopt;
      uint64_t derived = 0;
      for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
        if (queue == state.queue) continue;
        const InFlight* other = latest_conflict(queue, state.touches, entry.update_ranges);
        if (other == nullptr) continue;
        const bool given = std::ranges::any_of(
            waits, [&](const Point& p) { return p.queue == queue && p.value >= other->value; });
        if (given) continue;
        all_waits.push_back({backend.get(), queue, other->value});
        ++derived;
      }
      note_awaited(all_waits.all(), entry);
      // Held before it runs: nothing may fail between the two.
      entries.push_back(std::move(entry));
      Point made;
      try {
        made = backend->submit({state.program.get(), backend_updates.all(), all_waits.all()});
      } catch (...) {
        entries.pop_back();
        throw;
      }
      entries.back().value = made.value;
      submitted[state.queue].store(made.value, std::memory_order_release);
      ++counters.submissions;
      counters.commands_submitted += state.commands;
      counters.fences_submitted += state.fences;
      counters.updates += updates.size();
      counters.update_bytes += update_bytes;
      counters.waits_given += waits.size();
      counters.waits_derived += derived;
      return made;
    });
    if (point) return *point;
    if (!until) until = deadline();
    make_room(state.queue, *until);
  }
}

// The latest unreached point of each timeline.
void DeviceState::note_awaited(std::span<const Point> waits, InFlight& entry) const {
  size_t count = 0;
  for (const Point& point : waits) {
    if (backend->completed(point.queue) >= point.value) continue;
    const auto noted = std::span(entry.awaited).first(count);
    const auto same = std::ranges::find(noted, point.queue, &Awaited::queue);
    if (same != noted.end()) {
      same->value = std::max(same->value, point.value);
    } else if (count < entry.awaited.size()) {
      entry.awaited[count++] = {point.queue, point.value};
    }
  }
}

void DeviceState::check(const Point& point, const char* call) const {
  if (point.backend != backend.get()) {
    throw InvalidArgument(fmt::format("[{}] point: expected one of this device, got another's", call));
  }
  const bool host = point.queue == backend::kHostQueue;
  if (!host && point.queue >= submitted.size()) {
    throw InvalidArgument(
        fmt::format("[{}] point: queue: expected less than {}, got {}", call, submitted.size(), point.queue));
  }
  const uint64_t last = (host ? host_value : submitted[point.queue]).load(std::memory_order_acquire);
  if (point.value > last) {
    throw InvalidArgument(
        fmt::format("[{}] point: expected one that submit or host_point returned, got value {} of {}", call,
                    point.value, last));
  }
}

// With the mutex held.
DeviceState::InFlight* DeviceState::find_in_flight(const Point& point) {
  if (point.queue >= in_flight.size()) return nullptr;
  auto& entries = in_flight[point.queue];
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].value == point.value) return &entries[i];
  }
  return nullptr;
}

// With the mutex held.
std::string DeviceState::label_of(const Point& point) {
  const InFlight* entry = find_in_flight(point);
  return entry == nullptr ? std::string() : entry->program->label;
}

// Remembers why a submission failed, with the message that every wait for it throws. A submission is counted
// while it is among those in flight: reap() looks at each before it lets go of it. With the mutex held.
DeviceState::Failure DeviceState::note_failure(const Point& point, const std::string& what) {
  const std::pair key{point.queue, point.value};
  if (const auto known = failed.find(key); known != failed.end()) return {known->second, false};
  InFlight* entry = find_in_flight(point);
  Failure failure;
  failure.message = fmt::format(
      "[submission] {}{} of queue {}: {}",
      entry == nullptr || entry->program->label.empty() ? "" : fmt::format("'{}', ", entry->program->label),
      point.value, point.queue, what);
  if (entry == nullptr) return failure;  // counted, and forgotten among too many others
  failed.emplace(key, failure.message);
  if (failed.size() > kMaxFailures) failed.erase(failed.begin());
  failure.news = !std::exchange(entry->counted, true);
  if (failure.news) ++counters.failures;
  return failure;
}

// As note_failure, without the mutex; tells the log.
std::string DeviceState::tell_failure(const Point& point, const std::string& what) {
  Failure failure;
  {
    const std::lock_guard lock(mutex);
    failure = note_failure(point, what);
  }
  if (failure.news) log(LogLevel::warning, failure.message);
  return failure.message;
}

std::string DeviceState::failure(const Point& point) {
  {
    const std::lock_guard lock(mutex);
    const auto known = failed.find({point.queue, point.value});
    if (known != failed.end()) return known->second;
  }
  if (point.queue == backend::kHostQueue || backend->completed(point.queue) < point.value) return {};
  try {
    (void)backend->wait(point, std::chrono::nanoseconds(0));
  } catch (const DeviceLost& error) {
    note_lost(error.what());
    return error.what();
  } catch (const DeviceError& error) {
    return tell_failure(point, error.what());
  }
  return {};
}

void DeviceState::wait(const Point& point, std::chrono::nanoseconds timeout) {
  check(point, "wait");
  {
    const std::lock_guard lock(mutex);
    ++counters.host_waits;
  }
  bool done = false;
  try {
    done = guarded([&] { return backend->wait(point, timeout); });
  } catch (const DeviceLost& error) {
    std::string label;
    {
      const std::lock_guard lock(mutex);
      label = label_of(point);
    }
    if (label.empty()) throw;
    throw DeviceLost(fmt::format("[submission] '{}': {}", label, error.what()));
  } catch (const DeviceError& error) {
    throw DeviceError(tell_failure(point, error.what()));
  }
  if (done) return;
  std::string label;
  {
    const std::lock_guard lock(mutex);
    ++counters.timeouts;
    label = label_of(point);
  }
  throw TimeoutError(fmt::format("[wait] queue {} has not completed submission {}{} within {} ms",
                                 point.queue, point.value, label.empty() ? "" : fmt::format(" '{}'", label),
                                 std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count()));
}

void DeviceState::reap() {
  // Programs are destroyed outside the lock: their destructors may release memory and take their time.
  std::array<InFlight, 4> done;
  for (bool more = true; more;) {
    size_t count = 0;
    std::vector<std::string> failures;
    std::string loss;
    {
      const std::lock_guard lock(mutex);
      for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
        auto& entries = in_flight[queue];
        if (entries.empty()) continue;
        const uint64_t completed = backend->completed(queue);
        while (!entries.empty() && entries[0].value <= completed && count < done.size()) {
          const Point point{backend.get(), queue, entries[0].value};
          try {
            (void)backend->wait(point, std::chrono::nanoseconds(0));
          } catch (const DeviceLost& error) {
            loss = error.what();
          } catch (const DeviceError& error) {
            Failure failure = note_failure(point, error.what());
            if (failure.news) failures.push_back(std::move(failure.message));
          }
          done[count++] = entries.take_front();
        }
      }
      more = count == done.size();
    }
    if (!loss.empty()) note_lost(loss);
    for (const std::string& failure : failures) log(LogLevel::warning, failure);
    for (InFlight& entry : std::span(done).first(count)) {
      std::vector<Touch> ranges = std::move(entry.update_ranges);
      entry = {};
      if (ranges.capacity() == 0) continue;
      ranges.clear();
      const std::lock_guard lock(mutex);
      if (spare_ranges.size() < spare_ranges.capacity()) spare_ranges.push_back(std::move(ranges));
    }
  }
}

void DeviceState::apply_residency() {
  std::array<std::shared_ptr<ResidencyStage>, 8> staged;
  size_t count = 0;
  {
    const std::lock_guard lock(mutex);
    if (residency.empty()) return;
    std::erase_if(residency, [](const auto& stage) { return stage->finished(); });
    for (const auto& stage : residency) {
      if (count == staged.size()) break;  // the others at the next submission
      if (stage->staged()) staged[count++] = stage;
    }
  }
  for (size_t i = 0; i < count; ++i) staged[i]->apply(*this);
}

}  // namespace refrain
