// What all handles of one device share. Internal to stream/.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "refrain/stream/device.h"

namespace refrain {

struct Program::State {
  Plan plan;
  uint32_t queue = 0;
  Buffer arena;
  std::shared_ptr<device::Backend> backend;
  std::vector<const device::Allocation*> bound;  // by address: what the program itself keeps alive
  uint64_t commands = 0;                         // fences excluded
  bool timestamps = false;
  std::unique_ptr<device::Program> program;  // destroyed first: it refers to all of the above
};

struct DeviceState {
  DeviceState(std::shared_ptr<device::Backend> device_backend,
              std::span<const device::WeightLayout> weight_layouts, DeviceOptions device_options);
  ~DeviceState();
  DeviceState(const DeviceState&) = delete;
  DeviceState& operator=(const DeviceState&) = delete;

  std::shared_ptr<const AllocationHandle> allocate(const device::BufferSpec& spec,
                                                   std::shared_ptr<const void> keep_alive);
  /// The mapped file as one allocation: all weights in it are views, so that identity is one even where they
  /// overlap.
  std::shared_ptr<const AllocationHandle> import_file(const std::shared_ptr<const MappedFile>& file);
  std::pair<Plan, PlanReport> plan(ComputeGraph graph, const PlanOptions& options);
  Program prepare(const Plan& plan, const PrepareOptions& options, bool once);
  Point submit(const Program& program, std::span<const Update> updates, std::span<const Point> waits);
  /// Throws InvalidArgument unless `point` came from submit or host_point of this device.
  void check(const Point& point, const char* call) const;
  /// An empty graph with the storage of the last spent one: recording again touches no new pages.
  ComputeGraph take_storage();
  void keep_storage(ComputeGraph&& graph) noexcept;
  /// Lets go of programs whose submissions have completed.
  void reap();

  struct InFlight {
    uint64_t value = 0;
    std::shared_ptr<Program::State> program;
    std::vector<std::shared_ptr<const AllocationHandle>>
        updated;  // memory of updates that the program does not bind
  };

  const std::shared_ptr<device::Backend> backend;
  const std::span<const device::WeightLayout> layouts;
  const DeviceOptions options;

  struct {
    std::atomic<uint64_t> allocations{0}, dispatches_recorded{0}, plans{0}, programs_prepared{0},
        submissions{0}, commands_submitted{0};
  } counters;

  std::vector<std::atomic<uint64_t>> submitted;  // by queue: the value of the last submission
  std::atomic<uint64_t> host_value{0};           // of the last host point

  std::mutex mutex;                              // guards what follows
  std::vector<std::vector<InFlight>> in_flight;  // by queue, ascending
  std::map<const MappedFile*, std::weak_ptr<const AllocationHandle>> imports;
  ComputeGraph spare;  // empty
};

}  // namespace refrain
