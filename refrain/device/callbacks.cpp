#include "refrain/device/callbacks.h"

#include <fmt/format.h>

#include <system_error>
#include <utility>

#include "refrain/device/device_state.h"

namespace refrain {
namespace {

// A wait without an end: now + this does not overflow.
constexpr std::chrono::nanoseconds kEndless = std::chrono::hours(24 * 365);

template <class Entries>
void move_reached(Entries& from, uint64_t completed, Entries& to) {
  for (auto entry = from.begin(); entry != from.end();) {
    const auto next = std::next(entry);
    if (entry->value <= completed) to.splice(to.end(), from, entry);
    entry = next;
  }
}

}  // namespace

Callbacks::Callbacks(DeviceState& device)
    : device_(device),
      calls_(std::make_shared<Calls>(device.options.log)),
      pending_(device.backend->info.queue_count),
      watchers_(device.backend->info.queue_count) {}

// With the mutex held.
void Callbacks::start_threads(uint32_t queue) {
  try {
    if (!caller_.joinable()) caller_ = std::thread([calls = calls_] { call_ready(calls); });
    if (queue == backend::kHostQueue || watchers_[queue].joinable()) return;
    watchers_[queue] = std::thread([this, queue] { watch(queue); });
  } catch (const std::system_error& error) {
    throw DeviceError(fmt::format("[when_reached] no thread to be had: {}", error.what()));
  }
}

void Callbacks::add(const backend::Point& point, Function function) {
  Entries entry;
  entry.push_back({point.value, std::move(function)});
  const bool host = point.queue == backend::kHostQueue;
  const auto reached = [&] { return device_.backend->completed(point.queue) >= point.value; };
  for (;;) {
    const bool known = !host && reached();
    if (known) entry.front().error = outcome(point);
    const std::lock_guard lock(calls_->mutex);
    device_.check_live();
    // With the mutex held, as settle() does: a watcher waits for no later point than one that is pending.
    const bool ready = reached();
    if (ready && !known && !host) continue;
    start_threads(ready ? backend::kHostQueue : point.queue);
    Entries& to = ready ? calls_->ready : host ? host_pending_ : pending_[point.queue];
    to.splice(to.end(), entry);
    calls_->changed.notify_all();
    return;
  }
}

std::exception_ptr Callbacks::outcome(const backend::Point& point) noexcept {
  try {
    const std::string why = device_.submissions.failure(point);
    device_.check_live();
    return why.empty() ? nullptr : std::make_exception_ptr(DeviceError(why));
  } catch (...) {
    return std::current_exception();
  }
}

// Passes on what has been reached. The next value to wait for, 0 when nothing is pending.
uint64_t Callbacks::settle(uint32_t queue) noexcept {
  Entries reached;
  uint64_t next = 0;
  {
    const std::lock_guard lock(calls_->mutex);
    const uint64_t completed = device_.lost ? UINT64_MAX : device_.backend->completed(queue);
    move_reached(pending_[queue], completed, reached);
    if (!pending_[queue].empty()) next = completed + 1;
  }
  for (Entry& entry : reached) entry.error = outcome({device_.backend->id, queue, entry.value});
  if (reached.empty()) return next;
  const std::lock_guard lock(calls_->mutex);
  calls_->ready.splice(calls_->ready.end(), reached);
  calls_->changed.notify_all();
  return next;
}

void Callbacks::watch(uint32_t queue) {
  for (;;) {
    {
      std::unique_lock lock(calls_->mutex);
      calls_->changed.wait(lock, [&] { return closing_ || !pending_[queue].empty(); });
      if (pending_[queue].empty()) return;
    }
    const uint64_t next = settle(queue);
    if (next == 0) continue;
    try {
      try {
        (void)device_.backend->wait({device_.backend->id, queue, next}, kEndless);
      } catch (const DeviceLost& error) {
        device_.note_lost(error.what());
      }
    } catch (...) {
      // It has ended, and settle() finds out how; or memory is short, and it is waited for again.
    }
  }
}

void Callbacks::host_changed() noexcept {
  const std::lock_guard lock(calls_->mutex);
  if (host_pending_.empty()) return;
  const bool lost = device_.lost;
  // Given up with the mutex held, so that the thread of the calls has the last share.
  const std::exception_ptr error = lost ? outcome({device_.backend->id, backend::kHostQueue, 0}) : nullptr;
  Entries reached;
  move_reached(host_pending_, lost ? UINT64_MAX : device_.backend->completed(backend::kHostQueue), reached);
  for (Entry& entry : reached) entry.error = error;
  calls_->ready.splice(calls_->ready.end(), reached);
  calls_->changed.notify_all();
}

void Callbacks::close() noexcept {
  {
    const std::lock_guard lock(calls_->mutex);
    if (closing_) return;
    closing_ = true;
    calls_->changed.notify_all();
  }
  for (std::thread& watcher : watchers_) {
    if (watcher.joinable()) watcher.join();
  }
  {
    const std::lock_guard lock(calls_->mutex);
    for (Entry& entry : host_pending_) {
      try {
        throw DeviceError(fmt::format(
            "[when_reached] the device was closed before host point {} was signalled", entry.value));
      } catch (...) {
        entry.error = std::current_exception();  // or that there was no memory to say it
      }
    }
    calls_->ready.splice(calls_->ready.end(), host_pending_);
    calls_->closed = true;
    calls_->changed.notify_all();
  }
  if (!caller_.joinable()) return;
  if (caller_.get_id() == std::this_thread::get_id()) {
    caller_.detach();  // a function has dropped the last handle; the others are called after it
  } else {
    caller_.join();
  }
}

void Callbacks::call_ready(const std::shared_ptr<Calls>& calls) {
  const auto tell = [&](const char* what) {
    try {
      if (calls->log) calls->log(LogLevel::warning, fmt::format("[when_reached] a function threw: {}", what));
    } catch (...) {
      // As DeviceState::log.
    }
  };
  for (;;) {
    Entries next;
    {
      std::unique_lock lock(calls->mutex);
      calls->changed.wait(lock, [&] { return !calls->ready.empty() || calls->closed; });
      if (calls->ready.empty()) return;
      next.splice(next.end(), calls->ready, calls->ready.begin());
    }
    try {
      next.front().function(std::move(next.front().error));
    } catch (const std::exception& error) {
      tell(error.what());
    } catch (...) {
      tell("something that is no std::exception");
    }
  }
}

}  // namespace refrain
