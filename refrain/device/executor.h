// One recording, run once, with everything that is known of how: the way from ops to a report.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/device/profile.h"

namespace refrain {

struct ExecuteOptions {
  PlanOptions plan = {};  ///< what the passes do: fusing, order, memory
  /// Submit the first max(64, a tenth) of the commands while the rest is prepared, when there are more.
  bool split = false;
  bool timestamps = false;  ///< for profile_of()
  uint32_t queue = 0;
  std::vector<Point> waits = {};
  std::string label = {};
  /// Gets the point of what was submitted last, also where execute() then throws; not written when that is nothing.
  std::optional<Point>* submitted = nullptr;
};

/// What execute() did. The times are of the host, each without the ones before.
struct Report {
  PlanReport plan;
  Point point;                               ///< reached when all of it has run
  std::vector<Program> parts;                ///< what was submitted, in order: one, or two after a split
  std::chrono::nanoseconds plan_time{0};     ///< all passes
  std::chrono::nanoseconds prepare_time{0};  ///< of all parts
  std::chrono::nanoseconds submit_time{0};   ///< of all parts
};

/// Plans, prepares and submits what was recorded, as programs of its own with their arena. Throws as
/// CommandEncoder::commit; what it throws for the second part of a split does not stop the first, which runs.
Report execute(CommandEncoder& encoder, const ExecuteOptions& options = {});

/// Waits for the run and says what its commands took. Throws as Device::wait; InvalidArgument when the report is none or
/// was made without timestamps.
Profile profile_of(Device& device, const Report& report,
                   std::chrono::nanoseconds timeout = std::chrono::minutes(10));

}  // namespace refrain
