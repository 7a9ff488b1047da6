// Submissions: their order between queues, their completion, their failures.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "refrain/stream/device_state.h"

namespace refrain {
namespace {

using Touch = graph::AccessSummary::Entry;

// Submissions with more updates or waits than this allocate; a step block is one update.
constexpr size_t kInlineUpdates = 8;
constexpr size_t kInlineWaits = 16;

// Failures that are remembered; an older point then fails with the backend's own words.
constexpr size_t kMaxFailures = 1024;

bool overlap(const Touch& a, const Touch& b) {
  return a.allocation == b.allocation && a.begin < b.end && b.begin < a.end && (a.write || b.write);
}

/// True when `range`, a write, shares a byte with `summary`, whose entries are sorted and disjoint.
bool touches(const graph::AccessSummary& summary, const Touch& range) {
  const auto first = std::ranges::partition_point(summary.entries, [&](const Touch& entry) {
    return entry.allocation < range.allocation ||
           (entry.allocation == range.allocation && entry.end <= range.begin);
  });
  return first != summary.entries.end() && overlap(*first, range);
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
                                            std::span<device::Update> backend_updates) {
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
    const device::BufferView to = update.to.device_view();
    backend_updates[i] = {to, update.from};
    entry.update_ranges.push_back({to.allocation->id, to.offset_bytes, to.offset_bytes + to.bytes, true});
    if (!std::ranges::binary_search(state.bound, to.allocation, std::less<>()))
      entry.updated.push_back(update.to.memory());
  }
  return entry;
}

uint64_t DeviceState::latest_conflict(uint32_t queue, const graph::AccessSummary& accesses,
                                      std::span<const Touch> writes) const {
  const auto& entries = in_flight[queue];
  if (entries.empty()) return 0;
  const uint64_t completed = backend->completed(queue);
  for (size_t i = entries.size(); i-- > 0;) {
    const InFlight& other = entries[i];
    if (other.value <= completed) return 0;
    if (graph::conflicts(accesses, other.program->touches)) return other.value;
    for (const Touch& write : writes) {
      if (touches(other.program->touches, write)) return other.value;
    }
    for (const Touch& write : other.update_ranges) {
      if (touches(accesses, write)) return other.value;
      for (const Touch& own : writes) {
        if (overlap(own, write)) return other.value;
      }
    }
  }
  return 0;
}

Point DeviceState::submit(const Program& program, std::span<const Update> updates,
                          std::span<const Point> waits) {
  check_live();
  if (!program) throw InvalidArgument("[submit] program: expected a prepared program, got none");
  Program::State& state = *program.state_;
  if (state.backend != backend)
    throw InvalidArgument("[submit] program: expected one of this device, got another's");
  for (const Point& point : waits) check(point, "submit");
  reap();

  Inline<device::Update, kInlineUpdates> backend_updates;
  backend_updates.resize(updates.size());
  InFlight entry = describe(program, updates, backend_updates.all());
  uint64_t update_bytes = 0;
  for (const Update& update : updates) update_bytes += update.from.size();

  apply_residency();
  Inline<Point, kInlineWaits> all_waits;
  for (const Point& point : waits) all_waits.push_back(point);
  return guarded([&] {
    const std::lock_guard lock(mutex);
    uint64_t derived = 0;
    for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
      if (queue == state.queue) continue;
      const uint64_t value = latest_conflict(queue, state.touches, entry.update_ranges);
      const bool given = std::ranges::any_of(
          waits, [&](const Point& point) { return point.queue == queue && point.value >= value; });
      if (value == 0 || given) continue;
      all_waits.push_back({backend.get(), queue, value});
      ++derived;
    }
    // Held before it runs: nothing may fail between the two.
    auto& entries = in_flight[state.queue];
    entries.push_back(std::move(entry));
    Point point;
    try {
      point = backend->submit({state.program.get(), backend_updates.all(), all_waits.all()});
    } catch (...) {
      entries.pop_back();
      throw;
    }
    entries.back().value = point.value;
    submitted[state.queue].store(point.value, std::memory_order_release);
    ++counters.submissions;
    counters.commands_submitted += state.commands;
    counters.fences_submitted += state.fences;
    counters.updates += updates.size();
    counters.update_bytes += update_bytes;
    counters.waits_given += waits.size();
    counters.waits_derived += derived;
    return point;
  });
}

void DeviceState::check(const Point& point, const char* call) const {
  if (point.backend != backend.get()) {
    throw InvalidArgument(fmt::format("[{}] point: expected one of this device, got another's", call));
  }
  const bool host = point.queue == device::kHostQueue;
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
std::string DeviceState::label_of(const Point& point) const {
  if (point.queue >= in_flight.size()) return {};
  for (const InFlight& entry : in_flight[point.queue]) {
    if (entry.value == point.value) return entry.program->label;
  }
  return {};
}

// Remembers why a submission failed, and gives the message that every wait for it throws.
std::string DeviceState::note_failure(const Point& point, const std::string& label, const std::string& what) {
  std::string message;
  {
    const std::lock_guard lock(mutex);
    const std::pair key{point.queue, point.value};
    if (const auto known = failed.find(key); known != failed.end()) return known->second;
    const std::string& name = label.empty() ? label_of(point) : label;
    message = fmt::format("[submission] {}{}: {}", name.empty() ? "" : fmt::format("'{}', ", name),
                          fmt::format("{} of queue {}", point.value, point.queue), what);
    if (failed.size() == kMaxFailures) failed.erase(failed.begin());
    failed.emplace(key, message);
    ++counters.failures;
  }
  log(LogLevel::warning, message);
  return message;
}

std::string DeviceState::failure(const Point& point) {
  {
    const std::lock_guard lock(mutex);
    const auto known = failed.find({point.queue, point.value});
    if (known != failed.end()) return known->second;
  }
  if (point.queue == device::kHostQueue || backend->completed(point.queue) < point.value) return {};
  try {
    (void)backend->wait(point, std::chrono::nanoseconds(0));
  } catch (const DeviceLost& error) {
    note_lost(error.what());
    return error.what();
  } catch (const DeviceError& error) {
    return note_failure(point, {}, error.what());
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
    throw DeviceError(note_failure(point, {}, error.what()));
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
  std::array<InFlight, 16> done;
  std::array<uint32_t, 16> queue_of{};
  for (bool more = true; more;) {
    size_t count = 0;
    {
      const std::lock_guard lock(mutex);
      for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
        if (in_flight[queue].empty()) continue;
        const uint64_t completed = backend->completed(queue);
        auto& entries = in_flight[queue];
        size_t n = 0;
        while (n < entries.size() && entries[n].value <= completed && count < done.size()) {
          queue_of[count] = queue;
          done[count++] = std::move(entries[n++]);
        }
        entries.erase(entries.begin(), entries.begin() + static_cast<ptrdiff_t>(n));
      }
      more = count == done.size();
    }
    for (size_t i = 0; i < count; ++i) {
      const Point point{backend.get(), queue_of[i], done[i].value};
      try {
        (void)backend->wait(point, std::chrono::nanoseconds(0));
      } catch (const DeviceLost& error) {
        note_lost(error.what());
      } catch (const DeviceError& error) {
        note_failure(point, done[i].program->label, error.what());
      }
      std::vector<Touch> ranges = std::move(done[i].update_ranges);
      done[i] = {};
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
