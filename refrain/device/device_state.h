// What all handles of one device share. Internal to device/.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/device/callbacks.h"
#include "refrain/device/device.h"
#include "refrain/device/failures.h"
#include "refrain/device/imports.h"
#include "refrain/device/submissions.h"
#include "refrain/device/undefined.h"
#include "refrain/graph/summary.h"

namespace refrain {

struct Program::State {
  Plan plan;
  uint32_t queue = 0;
  Buffer arena;
  std::shared_ptr<backend::Backend> backend;
  std::vector<const void*> kept;  // by address: the handles that the program itself keeps alive
  graph::AccessSummary touches;   // the arena included
  std::unique_ptr<const graph::ValueSummary> values;  // of Submissions, which makes it when it is needed
  uint64_t commands = 0;                              // fences excluded
  uint64_t fences = 0;
  bool timestamps = false;
  std::string label;
  std::unique_ptr<backend::Executable> program;  // destroyed first: it refers to all of the above
};

/// What the changes of a ResidencySet look like to a device. No function throws.
class ResidencyStage {
 public:
  virtual ~ResidencyStage() = default;
  /// True when apply() has something to do, or may have once more submissions have completed.
  virtual bool staged() const noexcept = 0;
  /// True when the set is gone and nothing is staged.
  virtual bool finished() const noexcept = 0;
  /// Once a submission, before it.
  virtual void apply(const DeviceState& device) noexcept = 0;
};

/// The ResidencySets of a device, for any thread.
class ResidencyStages {
 public:
  void add(std::shared_ptr<ResidencyStage> stage);
  /// Lets them say what they have staged: once a submission, before it.
  void apply(const DeviceState& device);

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<ResidencyStage>> stages_;
  std::atomic<bool> any_{false};
};

/// Something that is kept for whoever needs one next. For any thread.
template <class T>
class Kept {
 public:
  /// What is kept, or an empty one.
  T take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(value_, {});
  }
  /// Keeps `value` if it is better than what is kept; the other one ends outside of the lock.
  template <class Better>
  void keep(T value, const Better& better) noexcept {
    const std::lock_guard lock(mutex_);
    if (better(value, value_)) std::swap(value, value_);
  }

 private:
  std::mutex mutex_;
  T value_{};
};

/// Counts for any thread.
class CounterBook {
 public:
  template <class Change>
  void change(const Change& change) {
    const std::lock_guard lock(mutex_);
    change(counters_);
  }
  Counters get() const {
    const std::lock_guard lock(mutex_);
    return counters_;
  }

 private:
  mutable std::mutex mutex_;
  Counters counters_;
};

struct DeviceState : std::enable_shared_from_this<DeviceState> {
  DeviceState(std::shared_ptr<backend::Backend> device_backend,
              std::span<const backend::WeightLayout> weight_layouts, DeviceOptions device_options);
  ~DeviceState();
  DeviceState(const DeviceState&) = delete;
  DeviceState& operator=(const DeviceState&) = delete;

  std::shared_ptr<const AllocationHandle> allocate(const backend::BufferSpec& spec);
  std::pair<Plan, PlanReport> plan(ComputeGraph graph, const PlanOptions& options);
  Program prepare(const Plan& plan, const PrepareOptions& options, bool once);
  /// The plan in two parts, if it is long enough: submitted one after the other, with one arena, they do what
  /// it does.
  std::vector<Plan> split(const Plan& plan) const;
  /// As Device::submit. What throws has submitted nothing.
  Point submit(const Program& program, std::span<const Update> updates, std::span<const Point> waits,
               Submissions::Limit limit);
  /// Copies that the backend makes, counted. Nothing in flight uses the bytes.
  void write(const backend::BufferView& to, std::span<const std::byte> from);
  void read(const backend::BufferView& from, std::span<std::byte> to);
  /// Zeros. Nothing in flight uses the bytes.
  void clear(const backend::BufferView& view);
  /// Throws InvalidArgument unless `point` came from submit or host_point of this device.
  void check(const Point& point, const char* call) const;
  /// Throws DeviceLost once the device has been lost.
  void check_live() const;
  /// Memory for what programs that run once have of their own, kept for the next one: programs of a queue run one after the
  /// other. At least `bytes`; at most twice what a program of the queue has asked for.
  Buffer direct_arena(uint32_t queue, size_t bytes);
  /// An empty graph with the storage of the last spent one: recording again touches no new pages.
  ComputeGraph take_storage();
  void keep_storage(ComputeGraph&& graph) noexcept;
  void log(LogLevel level, std::string_view message) const noexcept;
  void note_lost(const std::string& what);
  /// What the device was lost by.
  std::string loss() const;
  /// What a new allocation knows of this device.
  DeviceLink link();

  const std::shared_ptr<backend::Backend> backend;
  const std::span<const backend::WeightLayout> layouts;
  const DeviceOptions options;
  KernelRegistry registry;
  const std::shared_ptr<Imports> imports;

  std::atomic<uint64_t> dispatches_recorded{0};  // of recordings that have ended
  std::atomic<uint64_t> host_value{0};           // of the last host point
  std::atomic<bool> lost{false};                 // once set, lost_message does not change
  mutable std::mutex lost_mutex;                 // guards lost_message
  std::string lost_message;
  CounterBook counters;
  const std::shared_ptr<Undefined> undefined;
  Failures failures;

  ResidencyStages residency;
  Kept<std::shared_ptr<const AllocationHandle>> staging;  // of pack()
  Kept<ComputeGraph> storage;                             // empty
  struct Arena {
    std::mutex mutex;
    std::shared_ptr<const AllocationHandle> memory;
  };
  std::vector<Arena> arenas;  // of each queue, for direct_arena()

  Submissions submissions;
  Callbacks callbacks;  // ends first

  /// Calls the backend, and remembers when it says that the device is lost.
  template <class Call>
  auto guarded(const Call& call) {
    check_live();
    try {
      return call();
    } catch (const DeviceLost& error) {
      note_lost(error.what());
      throw;
    }
  }
};

}  // namespace refrain
