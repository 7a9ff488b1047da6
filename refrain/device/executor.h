// One recording, run once, with everything that is known of how: the way from ops to a report.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/device/profile.h"

namespace refrain {

struct FinishOptions {
  PlanOptions plan = {};  ///< what the passes do: fusing, order, memory
  /// Submit the first max(64, a tenth) of the commands while the rest is prepared, when there are more.
  bool split = false;
  bool timestamps = false;  ///< for Report::profile
  uint32_t queue = 0;
  std::vector<Point> waits = {};
  std::string label = {};
};

/// What finish() did. The times are of the host, each without the ones before.
struct Report {
  PlanReport plan;
  Point point;                               ///< reached when all of it has run
  std::vector<Program> parts;                ///< what was submitted, in order: one, or two after a split
  std::chrono::nanoseconds plan_time{0};     ///< all passes
  std::chrono::nanoseconds prepare_time{0};  ///< of all parts
  std::chrono::nanoseconds submit_time{0};   ///< of all parts
};

/// Ops recorded on a device that are run by finish(). As CommandEncoder in all else: one thread, spent once
/// finished, safe to drop.
class GraphSession {
 public:
  explicit GraphSession(const Device& device);

  /// Where ops are recorded. It cannot be committed, finished or moved: finish() ends it.
  CommandEncoder& encoder();
  /// Plans, prepares and submits what was recorded. Throws as CommandEncoder::commit; what it throws for the
  /// second part of a split does not stop the first, which runs: submitted() is its point.
  Report finish(const FinishOptions& options = {});
  /// The point of what finish() has submitted last, whether or not it threw then; none when it was nothing.
  std::optional<Point> submitted() const { return submitted_; }

 private:
  CommandEncoder& recording(const char* call);

  Device device_;
  std::unique_ptr<CommandEncoder> encoder_;  // lent, hence not moved; null once this was moved from
  std::optional<Point> submitted_;
};

/// Runs recordings on one device.
class GraphExecutor {
 public:
  explicit GraphExecutor(Device device) : device_(std::move(device)) {}

  GraphSession begin() const { return GraphSession(device_); }
  /// Waits for the run and says what its commands took. Throws as Device::wait; InvalidArgument when the
  /// report is none or was made without timestamps.
  Profile profile(const Report& report, std::chrono::nanoseconds timeout = std::chrono::minutes(10)) const;
  const Device& device() const { return device_; }

 private:
  Device device_;
};

}  // namespace refrain
