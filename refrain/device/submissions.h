// The submissions of one device: their order between queues, their completion, their verdict. Internal to
// device/.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/device/device.h"
#include "refrain/device/ring.h"
#include "refrain/device/undefined.h"
#include "refrain/graph/summary.h"

namespace refrain {

struct DeviceState;

/// Every submission has a place in one order of the device: where two conflict, that in which they run. In this
/// order its verdict is found, once the backend says that it has ended: it has failed if the backend says so,
/// and if it read bytes that an earlier failure left undefined.
class Submissions {
 public:
  explicit Submissions(DeviceState& device);
  Submissions(const Submissions&) = delete;
  Submissions& operator=(const Submissions&) = delete;

  enum class Limit : uint8_t {
    checked,   ///< by make_room(), before what is submitted was spent on it: it may be one more now
    to_check,  ///< waits for a place
  };
  /// As Device::submit. What throws has submitted nothing.
  Point submit(const std::shared_ptr<Program::State>& program, std::span<const Update> updates,
               std::span<const Point> waits, Limit limit);
  /// Returns once `queue` has a place for a submission; throws TimeoutError when it has none at `until`.
  void make_room(uint32_t queue, std::chrono::steady_clock::time_point until);
  /// As Device::wait.
  void wait(const Point& point, std::chrono::nanoseconds timeout);
  /// As Device::synchronize.
  void synchronize(const Buffer& buffer, std::chrono::nanoseconds timeout);
  /// Throws InvalidArgument when a submission in flight writes these bytes, or reads them if `write`. What
  /// those that have ended left undefined is known afterwards.
  void check_host_access(const char* call, const AllocationHandle& memory, size_t begin, size_t end,
                         bool write);
  /// Why the submission of `point` failed, label included, or the device was lost; else empty.
  std::string failure(const Point& point);
  /// Finds the verdicts of all that has ended.
  void settle();
  /// The same, and lets go of their programs.
  void reap();
  /// When nothing will be submitted any more: returns when all has ended, with every verdict found.
  void drain() noexcept;

  /// The value of the last submission of `queue`.
  uint64_t last(uint32_t queue) const { return queues_[queue].submitted.load(std::memory_order_acquire); }
  uint32_t queues() const { return static_cast<uint32_t>(queues_.size()); }
  /// The place of the last submission.
  uint64_t place() const { return place_.load(std::memory_order_acquire); }

 private:
  using Touch = graph::AccessSummary::Entry;
  struct Awaited {
    uint32_t queue = 0;
    uint64_t value = 0;  // 0: none
  };
  struct InFlight {
    uint64_t value = 0;
    uint64_t place = 0;
    std::shared_ptr<Program::State> program;
    std::vector<std::shared_ptr<const AllocationHandle>> updated;  // that the program does not keep
    std::vector<Touch> update_ranges;
    std::array<Awaited, 4>
        awaited{};            // the latest of each timeline, of the first few: to explain a full queue
    bool doomed = false;      // it reads what is undefined, and so does not run
    bool submitting = false;  // the backend has not accepted it yet
    bool settled = false;
  };
  struct Queue {
    std::mutex turn;  // held while one is submitted
    std::atomic<uint64_t> submitted{0};
    std::atomic<uint64_t> settled{0};  // the last whose verdict has been found
    Ring<InFlight> entries{64};  // room for what a steady loop keeps in flight, so that it allocates nothing
    size_t settled_entries = 0;  // the first ones
    std::unique_ptr<backend::Executable>
        nothing;  // runs in place of what is doomed; made when a failure is there
  };
  struct After;

  InFlight describe(const std::shared_ptr<Program::State>& program, std::span<const Update> updates,
                    std::span<backend::UpdateData> backend_updates);
  const InFlight* latest_conflict(uint32_t queue, const graph::AccessSummary* touches,
                                  std::span<const Touch> ranges, uint64_t born) const;
  uint64_t in_the_way(uint32_t queue) const;
  void derive_after(const InFlight& entry, std::span<const Point> given, After& after,
                    std::unique_lock<std::mutex>& lock);
  void note_awaited(std::span<const Point> waits, InFlight& entry) const;
  std::string obstacle(uint32_t queue) const;
  std::string label(const Point& point) const;
  void await(const Point& point, std::chrono::nanoseconds timeout);
  static const graph::ValueSummary& values(Program::State& program);
  template <class Each>
  static void each_read(const InFlight& entry, const Each& each);
  bool may_be_written(const Touch& range) const;
  bool doomed(const InFlight& entry) const;
  bool all_settled() const;
  InFlight* next_to_settle(uint32_t& queue);
  void settle(InFlight& entry, uint32_t queue, std::vector<std::string>& news, std::string& loss);

  DeviceState& device_;
  backend::Backend& backend_;
  const backend::PlanData empty_plan_;
  mutable std::mutex mutex_;  // guards the entries of all queues and what follows; not held during a submit
  std::condition_variable accepted_;  // told when an entry has ceased to be submitting
  std::vector<Queue> queues_;
  std::atomic<uint64_t> place_{0};
  std::vector<uint64_t> completed_;  // of each queue, at one moment
  std::vector<std::vector<Touch>> spare_ranges_;
};

}  // namespace refrain
