// What validate knows of a backend: allocations that live, programs, and submissions in flight.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "refrain/backend/validate/plan_checker.h"

namespace refrain::backend::validate {

struct Ledger;

class CheckedExecutable final : public Executable {
 public:
  CheckedExecutable(std::shared_ptr<Ledger> ledger_, std::unique_ptr<Executable> inner_, uint32_t queue_)
      : ledger(std::move(ledger_)), inner(std::move(inner_)), queue(queue_) {}
  ~CheckedExecutable() override;

  const std::shared_ptr<Ledger> ledger;
  std::unique_ptr<Executable> inner;
  const uint32_t queue;
  bool once = false;
  bool timestamps = false;
  size_t commands = 0;
  uint64_t submissions = 0;
  std::vector<Touch> touches;
  const Allocation* arena = nullptr;
};

struct Flight {
  uint64_t value = 0;
  const CheckedExecutable* program = nullptr;
  std::vector<BufferView> updated;
};

struct Record {
  std::string label;
  bool writable = true;
};

// What plans have sealed of one allocation: where, by the begin and end of each range.
using SealedRanges = std::map<std::pair<size_t, size_t>, std::string>;

// Shared with the programs, which may outlive the device.
struct Ledger {
  mutable std::mutex mutex;
  Backend* backend = nullptr;  // the inner one; null once it has ended
  std::unordered_map<const Allocation*, Record> live;
  std::set<const CheckedExecutable*> programs;
  std::unordered_map<const Allocation*, SealedRanges> sealed;
  std::vector<uint64_t> returned;  // the last value that submit() returned, by queue
  std::vector<std::deque<Flight>> flights;
  // What ended too early, kept until the submissions in flight at that time have completed.
  struct Kept {
    std::unique_ptr<Executable> program;
    const Allocation* allocation = nullptr;
    std::vector<uint64_t> until;
  };
  std::vector<Kept> kept;
  std::string breach;
  bool breach_unsaid = false;  // there was no memory to say it

  bool lives(const Allocation* allocation) const { return live.contains(allocation); }

  // Notes a breach in a call that may not throw: `what` says it, `keep` (may throw) keeps what ended too early.
  template <class What, class Keep>
  void record(const What& what, const Keep& keep) noexcept {
    try {
      if (breach.empty()) breach = what();
    } catch (const std::bad_alloc&) {
      breach_unsaid = true;
    }
    try {
      keep();
    } catch (const std::bad_alloc&) {
      // Then it is never let go of, which whoever runs on it need not know.
    }
  }

  // Drops what has completed and throws a breach that could not be thrown before.
  void settle() {
    for (uint32_t queue = 0; queue < flights.size(); ++queue) {
      const uint64_t done = backend->completed(queue);
      while (!flights[queue].empty() && flights[queue].front().value <= done) flights[queue].pop_front();
    }
    for (size_t i = 0; i < kept.size();) {
      bool free = true;
      for (uint32_t queue = 0; queue < kept[i].until.size(); ++queue) {
        free = free && backend->completed(queue) >= kept[i].until[queue];
      }
      if (!free) {
        ++i;
        continue;
      }
      if (kept[i].allocation != nullptr) backend->release(kept[i].allocation);
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (!breach.empty()) fail(std::exchange(breach, {}));
    if (std::exchange(breach_unsaid, false))
      fail("a call broke the contract, and there was no memory to say how");
  }

  struct User {
    uint32_t queue = 0;
    uint64_t value = 0;  // 0: none
  };

  // A submission in flight that touches `allocation`.
  User user_in_flight(const Allocation* allocation) const {
    for (uint32_t queue = 0; queue < flights.size(); ++queue) {
      const uint64_t done = backend->completed(queue);
      for (const Flight& flight : flights[queue]) {
        if (flight.value <= done) continue;
        bool uses = flight.program->arena == allocation;
        for (const Touch& touch : flight.program->touches) uses = uses || touch.allocation == allocation;
        for (const BufferView& updated : flight.updated) uses = uses || updated.allocation == allocation;
        if (uses) return {queue, flight.value};
      }
    }
    return {};
  }

  // The same of one that touches the bytes of `view`; if not `any`, that writes them.
  User user_in_flight(const BufferView& view, bool any) const {
    const size_t end = view.offset_bytes + view.bytes;
    for (uint32_t queue = 0; queue < flights.size(); ++queue) {
      const uint64_t done = backend->completed(queue);
      for (const Flight& flight : flights[queue]) {
        if (flight.value <= done) continue;
        bool uses = false;
        for (const Touch& touch : flight.program->touches) {
          uses = uses || (touch.allocation == view.allocation && touch.begin < end &&
                          view.offset_bytes < touch.end && (any || touch.writes));
        }
        for (const BufferView& updated : flight.updated) {
          uses = uses || (updated.allocation == view.allocation && updated.offset_bytes < end &&
                          view.offset_bytes < updated.offset_bytes + updated.bytes);
        }
        if (uses) return {queue, flight.value};
      }
    }
    return {};
  }
};

inline CheckedExecutable::~CheckedExecutable() {
  const std::lock_guard lock(ledger->mutex);
  ledger->programs.erase(this);
  if (ledger->backend == nullptr) return;
  auto& flights = ledger->flights[queue];
  const uint64_t done = ledger->backend->completed(queue);
  bool in_flight = false;
  for (size_t i = 0; i < flights.size();) {
    if (flights[i].program != this) {
      ++i;
      continue;
    }
    in_flight = in_flight || flights[i].value > done;
    flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (!in_flight) return;
  Executable* running = inner.release();
  ledger->record(
      [&] { return "program: ended while a submission of it was in flight on queue " + text(queue); },
      [&] {
        ledger->kept.push_back({nullptr, nullptr, ledger->returned});
        ledger->kept.back().program.reset(running);
      });
}

inline std::string text(const Ledger::User& user) {
  return "submission " + text(user.value) + " of queue " + text(user.queue);
}

}  // namespace refrain::backend::validate
