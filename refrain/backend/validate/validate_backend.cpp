// Keeps a ledger of allocations, programs and submissions in flight, and holds each call against it.
#include "refrain/backend/validate/validate_backend.h"

#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "refrain/backend/validate/ledger.h"
#include "refrain/backend/validate/plan_check.h"
#include "refrain/core/error.h"

namespace refrain::backend {
namespace validate {
namespace {

// False when the operating system says that a page of [address, +bytes) is mapped without the right to write.
bool writable(const void* address, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    uintptr_t first = 0, last = 0;
    char dash = 0;
    std::string rights;
    if (!(fields >> std::hex >> first >> dash >> last >> rights) || rights.size() < 2) continue;
    if (first < begin + bytes && begin < last && rights[1] != 'w') return false;
  }
  return true;
}

class ValidateBackend final : public Backend {
 public:
  explicit ValidateBackend(std::unique_ptr<Backend> inner)
      : Backend(inner->info, {inner->kernels, inner->group_kernels, inner->rewrites}),
        inner_(std::move(inner)),
        ledger_(std::make_shared<Ledger>()) {
    ledger_->backend = inner_.get();
    ledger_->returned.resize(info.queue_count);
    ledger_->flights.resize(info.queue_count);
  }

  ~ValidateBackend() override {
    std::unique_ptr<Backend> inner;
    {
      const std::lock_guard lock(ledger_->mutex);
      inner = std::move(inner_);
    }
    // Outside the lock: whoever is in wait() is let go. Programs that were kept for it end after it.
    inner.reset();
    const std::lock_guard lock(ledger_->mutex);
    ledger_->backend = nullptr;
    ledger_->kept.clear();
  }

  const Allocation* allocate(const BufferSpec& spec) override {
    const std::lock_guard lock(ledger_->mutex);
    ledger_->settle();
    if (spec.bytes == 0) fail("allocate: '" + spec.label + "': expected more than 0 bytes");
    check_import(spec);
    Record record{spec.label, spec.kind != MemoryKind::import_host || writable(spec.host, spec.bytes)};
    const Allocation* allocation = inner_->allocate(spec);
    try {
      const bool host = spec.kind == MemoryKind::host || spec.kind == MemoryKind::import_host;
      if (host && allocation->host == nullptr)
        fail("allocate: '" + spec.label + "': the backend gave memory of the host without its address");
      ledger_->live.emplace(allocation, std::move(record));
    } catch (...) {
      inner_->release(allocation);
      throw;
    }
    return allocation;
  }

  void release(const Allocation* allocation) noexcept override {
    const std::lock_guard lock(ledger_->mutex);
    const auto found = ledger_->live.find(allocation);
    if (found == ledger_->live.end()) {
      ledger_->record([] { return "release: this is no live allocation"; }, [] {});
      return;
    }
    const Record record = std::move(found->second);
    ledger_->live.erase(found);
    ledger_->sealed.erase(allocation);
    const Ledger::User user = ledger_->user_in_flight(allocation);
    if (user.value == 0) {
      inner_->release(allocation);
      return;
    }
    ledger_->record(
        [&] {
          return "release: allocation '" + record.label + "' is used by " + text(user) +
                 ", which is in flight";
        },
        [&] {
          ledger_->kept.push_back({nullptr, allocation, ledger_->returned});
        });
  }

  void advise(std::span<const BufferView> views, Advice advice) override {
    const std::lock_guard lock(ledger_->mutex);
    ledger_->settle();
    for (const BufferView& view : views) check_view("advise", view);
    inner_->advise(views, advice);
  }

  MemoryUsage memory() const override { return inner_->memory(); }

  const void* compile(const KernelSource& source) override { return inner_->compile(source); }

  void write(const BufferView& to, std::span<const std::byte> from) override {
    checked_copy("write", to, from.size(), true).write(to, from);
  }

  void read(const BufferView& from, std::span<std::byte> to) const override {
    checked_copy("read", from, to.size(), false).read(from, to);
  }

  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    std::unique_ptr<CheckedExecutable>
        program;  // should the rest throw, it ends after the lock, which it takes
    const std::lock_guard lock(ledger_->mutex);
    ledger_->settle();
    const PlanCheck check{info, options,
                          [this](const Allocation* allocation) { return ledger_->lives(allocation); }};
    std::vector<Touch> touches = check_plan(plan, check);
    for (const Touch& touch : touches) check_touch(touch);
    program = std::make_unique<CheckedExecutable>(ledger_, inner_->prepare(plan, options), options.queue);
    std::map<const Allocation*, SealedRanges> sealed;
    for (const Touch& touch : touches) {
      if (!touch.sealed) continue;
      sealed[touch.allocation].try_emplace({touch.begin, touch.end}, touch.where);
      ledger_->sealed.try_emplace(touch.allocation);
    }
    program->once = options.once;
    program->timestamps = options.timestamps;
    program->commands = plan.commands.size();
    program->touches = std::move(touches);
    program->arena = plan.arena_bytes > 0 ? options.arena.allocation : nullptr;
    ledger_->programs.insert(program.get());
    // Nothing throws from here on.
    for (auto& [allocation, ranges] : sealed) ledger_->sealed.find(allocation)->second.merge(ranges);
    return program;
  }

  Point submit(const Submission& submission) override {
    const std::lock_guard lock(ledger_->mutex);
    ledger_->settle();
    const auto* program = static_cast<const CheckedExecutable*>(submission.program);
    if (!ledger_->programs.contains(program))
      fail("submit: program: not one that lives and that prepare() returned");
    if (program->once && program->submissions > 0) fail("submit: program: prepared for one submission");
    check_program(*program);
    Flight flight{0, program, {}};
    for (const UpdateData& update : submission.updates) {
      check_update(update);
      flight.updated.push_back(update.to);
    }
    std::vector<Point> waits(submission.waits.begin(), submission.waits.end());
    std::vector<Point> after(submission.after.begin(), submission.after.end());
    for (Point& point : waits) translate("submit", point);
    for (Point& point : after) {
      translate("submit: after", point);
      if (point.queue == kHostQueue) fail("submit: after: point: of the host");
    }
    // All that may throw comes before the submit.
    const uint64_t value = ledger_->returned[program->queue] + 1;
    flight.value = value;
    auto& flights = ledger_->flights[program->queue];
    flights.push_back(std::move(flight));
    Point point;
    try {
      point = inner_->submit({program->inner.get(), submission.updates, waits, after});
    } catch (...) {
      flights.pop_back();
      throw;
    }
    if (point.backend != inner_->id || point.queue != program->queue || point.value != value) {
      ledger_->record(
          [&] {
            return "submit: the backend returned point " + text(point.value) + " of queue " +
                   text(point.queue) + ", expected " + text(value) + " of queue " + text(program->queue);
          },
          [] {});
    }
    ledger_->returned[program->queue] = value;
    ++const_cast<CheckedExecutable*>(program)->submissions;
    return {id, program->queue, value};
  }

  uint64_t completed(uint32_t queue) const override {
    if (queue >= info.queue_count && queue != kHostQueue)
      fail("completed: queue " + text(queue) + " does not exist");
    return inner_->completed(queue);
  }

  bool wait(const Point& point, std::chrono::nanoseconds timeout) override {
    Backend* inner = nullptr;
    {
      const std::lock_guard lock(ledger_->mutex);
      ledger_->settle();
      check_point("wait", point);
      inner = inner_.get();
    }
    return inner->wait({inner->id, point.queue, point.value}, timeout);
  }

  void signal_host(uint64_t value) override { inner_->signal_host(value); }
  void end_host() noexcept override { inner_->end_host(); }
  void recover(uint32_t queue) noexcept override { inner_->recover(queue); }

  void timestamps(const Executable& program, std::span<TickSpan> spans) const override {
    const std::lock_guard lock(ledger_->mutex);
    const auto* checked = static_cast<const CheckedExecutable*>(&program);
    if (!ledger_->programs.contains(checked)) fail("timestamps: program: not one that lives");
    if (!checked->timestamps) fail("timestamps: program: prepared without timestamps");
    if (spans.size() != checked->commands) {
      fail("timestamps: spans: expected " + text(checked->commands) + ", got " + text(spans.size()));
    }
    inner_->timestamps(*checked->inner, spans);
  }

 private:
  void check_view(const std::string& call, const BufferView& view) const {
    if (!ledger_->lives(view.allocation)) fail(call + ": view: its allocation does not live");
    if (!within(view.offset_bytes, view.bytes, view.allocation->bytes)) {
      fail(call + ": view: bytes [" + text(view.offset_bytes) + ", +" + text(view.bytes) +
           ") leave the allocation '" + ledger_->live.at(view.allocation).label + "' of " +
           text(view.allocation->bytes));
    }
  }

  // The inner device, to copy without the mutex.
  Backend& checked_copy(const std::string& call, const BufferView& view, size_t bytes, bool write) const {
    const std::lock_guard lock(ledger_->mutex);
    ledger_->settle();
    check_view(call, view);
    const Record& record = ledger_->live.at(view.allocation);
    if (bytes != view.bytes) fail(call + ": " + text(bytes) + " bytes for a view of " + text(view.bytes));
    if (const Ledger::User user = ledger_->user_in_flight(view, write); user.value != 0) {
      fail(call + ": allocation '" + record.label + "' is " + (write ? "used" : "written") + " by " +
           text(user) + ", which is in flight");
    }
    if (write) check_writable(call, view, record);
    return *inner_;
  }

  // Identity is an allocation's: bytes that two of them share would be ordered by neither.
  void check_import(const BufferSpec& spec) const {
    const bool of_host = spec.kind == MemoryKind::import_host,
               of_device = spec.kind == MemoryKind::import_device;
    if (of_host != (spec.host != nullptr) || of_device != (spec.device_address != 0))
      fail("allocate: '" + spec.label + "': expected the address of an import's kind, and of no other");
    if (!is_import(spec.kind)) return;
    const uintptr_t begin =
        of_host ? reinterpret_cast<uintptr_t>(spec.host) : static_cast<uintptr_t>(spec.device_address);
    if (begin % info.buffer_alignment_bytes != 0) {
      fail("allocate: '" + spec.label + "': imported memory is not aligned to " +
           text(info.buffer_alignment_bytes));
    }
    for (const auto& [allocation, record] : ledger_->live) {
      const uintptr_t other = of_host ? reinterpret_cast<uintptr_t>(allocation->host)
                                      : static_cast<uintptr_t>(allocation->device_address);
      if (other == 0 || begin >= other + allocation->bytes || other >= begin + spec.bytes) continue;
      fail("allocate: '" + spec.label + "': imports memory of the live allocation '" + record.label + "'");
    }
  }

  // Where bytes of [begin, end) have been sealed, null when nowhere.
  const std::string* sealed_in(const Allocation* allocation, size_t begin, size_t end) const {
    const auto ranges = ledger_->sealed.find(allocation);
    if (ranges == ledger_->sealed.end()) return nullptr;
    for (const auto& [range, where] : ranges->second) {
      if (range.first < end && begin < range.second) return &where;
    }
    return nullptr;
  }

  // A touch of a new plan against what the machine and the programs before it say.
  void check_touch(const Touch& touch) const {
    if (touch.writes) {
      const Record& record = ledger_->live.at(touch.allocation);
      if (!record.writable)
        fail("prepare: " + touch.where + ": writes the read-only import '" + record.label + "'");
      if (const std::string* where = sealed_in(touch.allocation, touch.begin, touch.end)) {
        fail("prepare: " + touch.where + ": writes what an earlier plan sealed in " + *where);
      }
    }
    if (!touch.sealed) return;
    for (const CheckedExecutable* program : ledger_->programs) {
      for (const Touch& other : program->touches) {
        if (other.writes && other.allocation == touch.allocation && other.begin < touch.end &&
            touch.begin < other.end) {
          fail("prepare: " + touch.where + ": sealed, but a program that lives writes it in " + other.where);
        }
      }
    }
  }

  void check_program(const CheckedExecutable& program) const {
    if (program.arena != nullptr && !ledger_->lives(program.arena))
      fail("submit: the arena has been released");
    for (const Touch& touch : program.touches) {
      if (!ledger_->lives(touch.allocation))
        fail("submit: " + touch.where + ": its allocation has been released");
    }
  }

  void check_update(const UpdateData& update) const {
    check_view("submit: update", update.to);
    if (update.from.size() != update.to.bytes) {
      fail("submit: update: " + text(update.from.size()) + " bytes for a view of " + text(update.to.bytes));
    }
    check_writable("submit: update", update.to, ledger_->live.at(update.to.allocation));
  }

  void check_writable(const std::string& call, const BufferView& view, const Record& record) const {
    if (!record.writable) fail(call + ": writes the read-only import '" + record.label + "'");
    const size_t begin = view.offset_bytes;
    if (const std::string* where = sealed_in(view.allocation, begin, begin + view.bytes))
      fail(call + ": writes what is sealed in " + *where);
  }

  void check_point(const std::string& call, const Point& point) const {
    if (point.backend != id) fail(call + ": point: of another backend");
    if (point.queue == kHostQueue) return;
    if (point.queue >= info.queue_count)
      fail(call + ": point: queue " + text(point.queue) + " does not exist");
    if (point.value > ledger_->returned[point.queue]) {
      fail(call + ": point: value " + text(point.value) + " of queue " + text(point.queue) +
           " was never returned");
    }
  }

  // Makes it a point of the inner backend.
  void translate(const std::string& call, Point& point) const {
    check_point(call, point);
    point.backend = inner_->id;
  }

  std::unique_ptr<Backend> inner_;
  const std::shared_ptr<Ledger> ledger_;
};

}  // namespace
}  // namespace validate

std::unique_ptr<Backend> make_validate(std::unique_ptr<Backend> inner) {
  return std::make_unique<validate::ValidateBackend>(std::move(inner));
}

}  // namespace refrain::backend
