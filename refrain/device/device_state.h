// What all handles of one device share. Internal to device/.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/device/callbacks.h"
#include "refrain/device/device.h"
#include "refrain/device/imports.h"
#include "refrain/device/ring.h"
#include "refrain/graph/summary.h"

namespace refrain {

struct Program::State {
  Plan plan;
  uint32_t queue = 0;
  Buffer arena;
  std::shared_ptr<backend::Backend> backend;
  std::vector<const void*> kept;  // by address: the handles that the program itself keeps alive
  graph::AccessSummary touches;   // the arena included
  uint64_t commands = 0;          // fences excluded
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
  enum class Limit : uint8_t {
    checked,   ///< by make_room(), before what is submitted was spent on it: it may be one more now
    to_check,  ///< waits for a place
  };
  Point submit(const Program& program, std::span<const Update> updates, std::span<const Point> waits,
               Limit limit);
  /// Returns once `queue` has a place for a submission; throws TimeoutError when it has none at `deadline`.
  void make_room(uint32_t queue, std::chrono::steady_clock::time_point deadline);
  std::chrono::steady_clock::time_point deadline() const;
  /// Throws InvalidArgument when a submission in flight writes these bytes, or reads them if `write`.
  void check_idle(const char* call, const AllocationHandle& memory, size_t begin, size_t end,
                  bool write) const;
  /// Copies that the backend makes, counted. Nothing in flight uses the bytes.
  void write(const backend::BufferView& to, std::span<const std::byte> from);
  void read(const backend::BufferView& from, std::span<std::byte> to);
  /// Zeros. Nothing in flight uses the bytes.
  void clear(const backend::BufferView& view);
  /// As Device::wait.
  void wait(const Point& point, std::chrono::nanoseconds timeout);
  /// Why the submission of `point` failed, label included; empty when it has not, as far as is known.
  std::string failure(const Point& point);
  /// Throws InvalidArgument unless `point` came from submit or host_point of this device.
  void check(const Point& point, const char* call) const;
  /// Throws DeviceLost once the device has been lost.
  void check_live() const;
  /// An empty graph with the storage of the last spent one: recording again touches no new pages.
  ComputeGraph take_storage();
  void keep_storage(ComputeGraph&& graph) noexcept;
  /// Lets go of programs whose submissions have completed, and notes which of them failed.
  void reap();
  void log(LogLevel level, std::string_view message) const noexcept;

  struct Awaited {
    uint32_t queue = 0;
    uint64_t value = 0;  // 0: none
  };
  struct InFlight {
    uint64_t value = 0;
    std::shared_ptr<Program::State> program;
    std::vector<std::shared_ptr<const AllocationHandle>>
        updated;  // memory of updates that the program does not keep
    std::vector<graph::AccessSummary::Entry> update_ranges;
    std::array<Awaited, 4>
        awaited{};         // the latest of each timeline, of the first few: to explain a full queue
    bool counted = false;  // among the failures
  };
  /// The latest submission in flight on `queue` that conflicts with `touches` or `ranges`, null when there is
  /// none. With the mutex held.
  const InFlight* latest_conflict(uint32_t queue, const graph::AccessSummary& touches,
                                  std::span<const graph::AccessSummary::Entry> ranges) const;
  void note_lost(const std::string& what);

  const std::shared_ptr<backend::Backend> backend;
  const std::span<const backend::WeightLayout> layouts;
  const DeviceOptions options;
  KernelRegistry registry;
  const std::shared_ptr<Imports> imports;

  std::atomic<uint64_t> dispatches_recorded{0};  // of recordings that have ended
  std::vector<std::atomic<uint64_t>> submitted;  // by queue: the value of the last submission
  std::atomic<uint64_t> host_value{0};           // of the last host point
  std::atomic<bool> lost{false};                 // once set, lost_message does not change

  mutable std::mutex mutex;  // guards what follows
  Counters counters;
  std::vector<Ring<InFlight>> in_flight;                        // by queue, ascending
  std::map<std::pair<uint32_t, uint64_t>, std::string> failed;  // by queue and value
  std::vector<std::vector<graph::AccessSummary::Entry>> spare_ranges;
  std::vector<std::shared_ptr<ResidencyStage>> residency;
  std::string lost_message;
  std::shared_ptr<const AllocationHandle> staging;  // of pack(), kept for the next one
  ComputeGraph spare;                               // empty
  Callbacks callbacks;                              // ends first

 private:
  InFlight describe(const Program& program, std::span<const Update> updates,
                    std::span<backend::UpdateData> backend_updates);
  struct Failure {
    std::string message;
    bool news = false;  // to be logged, without the mutex
  };
  Failure note_failure(const Point& point, const std::string& what);
  std::string tell_failure(const Point& point, const std::string& what);
  InFlight* find_in_flight(const Point& point);
  std::string label_of(const Point& point);
  uint64_t in_the_way(uint32_t queue) const;
  void note_awaited(std::span<const Point> waits, InFlight& entry) const;
  std::string obstacle(uint32_t queue) const;
  void apply_residency();

 public:
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
