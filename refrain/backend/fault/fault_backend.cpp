// Which submissions fail is known when they are submitted: waits name earlier points only. So each carries
// its verdict from the start, and it is told when the inner device reaches it.
#include "refrain/backend/fault/fault_backend.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "refrain/core/error.h"

namespace refrain::backend {
namespace fault {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

// Longer waits than this have no end: now + timeout must not overflow.
constexpr nanoseconds kEndless = std::chrono::hours(24 * 365);

std::string text(uint64_t value) { return std::to_string(value); }

struct FaultExecutable final : Executable {
  std::unique_ptr<Executable> inner;
  const PlanData* plan = nullptr;
  ExecutableOptions options;  // `placement` and `label` point to the copies beside it
  std::vector<uint32_t> placement;
  std::string label;
};

// The first commands of a program, prepared for a submission that fails behind them.
struct Prefix {
  PlanData plan;
  std::unique_ptr<Executable> program;
};

struct Failed {
  std::string failure;
  std::string cause;  // the first failure, which this one follows from
};

struct Queue {
  uint64_t submitted = 0;
  std::map<uint64_t, Failed> failed;                        // by value
  std::string stopped;                                      // the failure that no later one runs after
  Clock::time_point due{};                                  // of the last submission; never falls
  std::deque<std::pair<uint64_t, Clock::time_point>> dues;  // ascending, of those that may not be seen yet
  std::unique_ptr<Executable> nothing;                      // what runs in place of what fails
};

class FaultBackend final : public Backend {
 public:
  FaultBackend(std::unique_ptr<Backend> inner, const FaultPlan& plan)
      : Backend(inner->info, {inner->kernels, inner->group_kernels, inner->rewrites}),
        inner_(std::move(inner)),
        plan_(plan),
        queues_(info.queue_count) {}

  // What is left to run ends before the programs that stand in for others.
  ~FaultBackend() override {
    std::unique_ptr<Backend> inner;
    {
      const std::lock_guard lock(mutex_);
      inner = std::move(inner_);
    }
    inner.reset();  // outside the lock: whoever is in wait() is let go
    while (waiters_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }

  const Allocation* allocate(const BufferSpec& spec) override {
    {
      const std::lock_guard lock(mutex_);
      enter("allocate");
      if (hits(++counts_.allocations, plan_.allocation)) {
        throw DeviceError("fault: allocation " + text(counts_.allocations) + " refused: " + text(spec.bytes) +
                          " bytes wanted for '" + spec.label + "'");
      }
    }
    return inner_->allocate(spec);
  }

  void release(const Allocation* allocation) noexcept override {
    if (!lost()) inner_->release(allocation);
  }

  void advise(std::span<const BufferView> views, Advice advice) override {
    count("advise");
    inner_->advise(views, advice);
  }

  MemoryUsage memory() const override {
    count("memory");
    return inner_->memory();
  }

  const void* compile(const KernelSource& source) override {
    count("compile");
    return inner_->compile(source);
  }

  void write(const BufferView& to, std::span<const std::byte> from) override {
    count_copy("write");
    inner_->write(to, from);
  }

  void read(const BufferView& from, std::span<std::byte> to) const override {
    count_copy("read");
    inner_->read(from, to);
  }

  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    const std::lock_guard lock(mutex_);
    enter("prepare");
    if (hits(++counts_.prepares, plan_.prepare))
      throw DeviceError("fault: prepare " + text(counts_.prepares) + " refused");
    auto program = std::make_unique<FaultExecutable>();
    program->inner = inner_->prepare(plan, options);
    program->plan = &plan;
    program->options = options;
    program->placement.assign(options.placement.begin(), options.placement.end());
    program->options.placement = program->placement;
    program->label = options.label;
    program->options.label = program->label;
    return program;
  }

  Point submit(const Submission& submission) override {
    const std::lock_guard lock(mutex_);
    enter("submit");
    if (hits(++counts_.submits, plan_.submit))
      throw DeviceError("fault: submit " + text(counts_.submits) + " refused");

    const auto& program = *static_cast<const FaultExecutable*>(submission.program);
    const uint32_t index = program.options.queue;
    Queue& queue = queues_[index];
    std::string name = "submission " + text(queue.submitted + 1) + " of queue " + text(index);
    if (!program.label.empty()) name += " '" + program.label + "'";
    std::vector<Point> waits(submission.waits.begin(), submission.waits.end());
    std::vector<Point> after(submission.after.begin(), submission.after.end());
    Clock::time_point due = std::max(queue.due, Clock::now() + std::min(plan_.delay, kEndless));
    std::string cause = queue.stopped;
    for (Point& point : waits) {
      point.backend = inner_->id;
      if (point.queue == kHostQueue) continue;
      const Queue& other = queues_[point.queue];
      const auto failed = other.failed.find(point.value);
      if (cause.empty() && failed != other.failed.end()) cause = failed->second.cause;
      due = std::max(due, due_of(other, point.value));
    }
    for (Point& point : after) {
      point.backend = inner_->id;
      due = std::max(due, due_of(queues_[point.queue], point.value));
    }

    Submission inner{program.inner.get(), submission.updates, waits, after};
    std::string failure;
    const uint64_t commands = program.plan->commands.size(), before = counts_.commands;
    const bool fails = plan_.execution == counts_.executions + 1;
    const bool fails_within = plan_.command > before && plan_.command <= before + commands;
    if (!cause.empty()) {
      // Nothing runs, so there is nothing to wait for.
      failure = "fault: " + name + " did not run: " + cause;
      inner = {&nothing(index), {}, {}, {}};
    } else if (fails) {
      failure = "fault: " + name + " failed before its first command";
      inner = {&nothing(index), {}, waits, after};
    } else if (fails_within) {
      const auto at = static_cast<uint32_t>(plan_.command - before - 1);
      const uint32_t label = program.plan->commands[at].label;
      failure = "fault: " + name + " failed at command " + text(at);
      if (label < program.plan->labels.size()) failure += " '" + program.plan->labels[label] + "'";
      inner.program = &prefix(program, at);
    }
    const uint64_t value = queue.submitted + 1;
    const auto now = Clock::now();
    while (!queue.dues.empty() && queue.dues.front().second <= now) queue.dues.pop_front();
    std::string stopped = cause.empty() && !failure.empty() ? failure : queue.stopped;
    queue.dues.emplace_back(value, due);
    try {  // all that may throw comes before the submit
      if (!failure.empty()) queue.failed.emplace(value, Failed{failure, cause.empty() ? failure : cause});
      inner_->submit(inner);
    } catch (...) {
      queue.dues.pop_back();
      queue.failed.erase(value);
      throw;
    }
    ++counts_.executions;
    counts_.commands += commands;
    if (!failure.empty() && cause.empty()) ++counts_.faults;
    queue.submitted = value;
    queue.stopped.swap(stopped);
    queue.due = due;
    return {id, index, value};
  }

  uint64_t completed(uint32_t index) const override {
    if (index == kHostQueue) return host_.load(std::memory_order_acquire);
    const std::lock_guard lock(mutex_);
    const Queue& queue = queues_[index];
    if (lost()) return queue.submitted;
    const uint64_t reached = inner_->completed(index);
    const auto now = Clock::now();
    for (const auto& [value, due] : queue.dues) {
      if (due > now) return std::min(reached, value - 1);
    }
    return reached;
  }

  bool wait(const Point& point, nanoseconds timeout) override {
    const Waiter waiter(waiters_);
    Backend* inner = nullptr;
    {
      const std::lock_guard lock(mutex_);
      enter("wait");
      inner = inner_.get();
    }
    const auto begin = Clock::now();
    // The loss lets all inner work go, so nobody stays here; in the mutex its end is waited for.
    std::exception_ptr failure;
    try {
      if (!inner->wait({inner->id, point.queue, point.value}, timeout)) return false;
    } catch (const DeviceError&) {
      failure = std::current_exception();
    }
    std::unique_lock lock(mutex_);
    throw_if_lost();
    if (failure != nullptr) std::rethrow_exception(failure);
    if (point.queue == kHostQueue) return true;
    const Queue& queue = queues_[point.queue];
    const auto due = due_of(queue, point.value);
    if (due > Clock::now()) {
      lock.unlock();
      if (timeout < kEndless && due > begin + timeout) {
        std::this_thread::sleep_until(begin + timeout);
        return false;
      }
      std::this_thread::sleep_until(due);
      lock.lock();
      throw_if_lost();
    }
    const auto failed = queue.failed.find(point.value);
    if (failed == queue.failed.end()) return true;
    throw DeviceError(failed->second.failure);
  }

  void signal_host(uint64_t value) override {
    const std::lock_guard lock(mutex_);
    if (lost() || host_ended_ || value <= host_.load(std::memory_order_relaxed)) return;
    host_.store(value, std::memory_order_release);
    inner_->signal_host(value);
  }

  void end_host() noexcept override {
    const std::lock_guard lock(mutex_);
    if (lost()) return;
    host_ended_ = true;
    inner_->end_host();
  }

  void recover(uint32_t index) noexcept override {
    const std::lock_guard lock(mutex_);
    if (lost()) return;
    queues_[index].stopped.clear();
    inner_->recover(index);
  }

  void timestamps(const Executable& program, std::span<TickSpan> spans) const override {
    count("timestamps");
    inner_->timestamps(*static_cast<const FaultExecutable&>(program).inner, spans);
  }

  void set(const FaultPlan& plan) {
    const std::lock_guard lock(mutex_);
    plan_ = plan;
    counts_ = {};
  }

  FaultCounts counts() const {
    const std::lock_guard lock(mutex_);
    return counts_;
  }

 private:
  // Who is in wait(): the device ends behind them.
  struct Waiter {
    explicit Waiter(std::atomic<uint32_t>& all) : count(all) {
      count.fetch_add(1, std::memory_order_relaxed);
    }
    ~Waiter() { count.fetch_sub(1, std::memory_order_release); }
    std::atomic<uint32_t>& count;
  };

  bool lost() const { return lost_.load(std::memory_order_acquire); }

  // `loss_` does not change once `lost_` is set.
  void throw_if_lost() const {
    if (lost()) throw DeviceLost(loss_);
  }

  bool hits(uint64_t number, uint64_t wanted) const {
    if (number == wanted) ++counts_.faults;
    return number == wanted;
  }

  // The beginning of every call that can lose the device, with mutex_ held.
  void enter(const char* call) const {
    throw_if_lost();
    if (!hits(++counts_.calls, plan_.loss)) return;
    // Work that runs is let to its end first: after the loss nobody may touch memory of the host.
    inner_->end_host();
    for (uint32_t index = 0; index < queues_.size(); ++index) {
      try {
        while (!inner_->wait({inner_->id, index, queues_[index].submitted}, nanoseconds::max())) {
        }
      } catch (const DeviceError&) {
        // It has ended, and that is all that is asked here.
      }
    }
    loss_ = "fault: device lost at call " + text(counts_.calls) + " (" + call + ")";
    lost_.store(true, std::memory_order_release);
    throw DeviceLost(loss_);
  }

  void count(const char* call) const {
    const std::lock_guard lock(mutex_);
    enter(call);
  }

  void count_copy(const char* call) const {
    const std::lock_guard lock(mutex_);
    enter(call);
    if (hits(++counts_.copies, plan_.copy))
      throw DeviceError("fault: copy " + text(counts_.copies) + " (" + call + ") refused");
  }

  static Clock::time_point due_of(const Queue& queue, uint64_t value) {
    Clock::time_point due{};
    for (const auto& [at, when] : queue.dues) {
      if (at <= value) due = when;
    }
    return due;
  }

  const Executable& nothing(uint32_t index) {
    Queue& queue = queues_[index];
    if (queue.nothing == nullptr) queue.nothing = inner_->prepare(empty_, {.queue = index});
    return *queue.nothing;
  }

  const Executable& prefix(const FaultExecutable& program, uint32_t commands) {
    auto part = std::make_unique<Prefix>();
    part->plan = *program.plan;
    part->plan.commands.resize(commands);
    ExecutableOptions options = program.options;
    options.placement = options.placement.first(std::min<size_t>(options.placement.size(), commands));
    part->program = inner_->prepare(part->plan, options);
    return *prefixes_.emplace_back(std::move(part))->program;
  }

  // Programs stand in for others until the inner device ends, and do not need it to end themselves.
  const PlanData empty_;
  std::vector<std::unique_ptr<Prefix>> prefixes_;
  std::unique_ptr<Backend> inner_;
  mutable std::mutex mutex_;
  FaultPlan plan_;
  mutable FaultCounts counts_;
  mutable std::vector<Queue> queues_;
  mutable std::string loss_;
  mutable std::atomic<bool> lost_{false};
  std::atomic<uint64_t> host_{0};
  bool host_ended_ = false;
  std::atomic<uint32_t> waiters_{0};
};

FaultBackend& checked(Backend& backend, const char* call) {
  auto* device = dynamic_cast<FaultBackend*>(&backend);
  if (device == nullptr)
    throw InvalidArgument(std::string("[") + call + "] backend: expected fault, got " + backend.info.backend);
  return *device;
}

}  // namespace
}  // namespace fault

std::unique_ptr<Backend> make_fault(std::unique_ptr<Backend> inner, const FaultPlan& plan) {
  return std::make_unique<fault::FaultBackend>(std::move(inner), plan);
}

void set_faults(Backend& backend, const FaultPlan& plan) { fault::checked(backend, "set_faults").set(plan); }

FaultCounts fault_counts(const Backend& backend) {
  return fault::checked(const_cast<Backend&>(backend), "fault_counts").counts();
}

}  // namespace refrain::backend
