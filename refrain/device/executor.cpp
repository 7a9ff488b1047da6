#include "refrain/device/executor.h"

#include <fmt/format.h>

#include <utility>

#include "refrain/core/deadline.h"
#include "refrain/core/error.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

class Stopwatch {
 public:
  /// Since the last call.
  std::chrono::nanoseconds lap() {
    const auto now = std::chrono::steady_clock::now();
    return now - std::exchange(last_, now);
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

Report execute(CommandEncoder& encoder, const ExecuteOptions& options) {
  encoder.recording("execute");
  encoder.check_own("execute");
  encoder.check_options(options.queue, options.waits);
  DeviceState& state = *encoder.device_;
  // While the recording can still be kept.
  state.submissions.make_room(options.queue, deadline_after(state.options.patience));
  Report report;
  Stopwatch watch;
  auto [plan, plan_report] = state.plan(encoder.take(EncoderState::failed, options.label), options.plan);
  const std::vector<Plan> plans = options.split ? state.split(plan) : std::vector{plan};
  report.plan = std::move(plan_report);
  report.plan_time = watch.lap();

  PrepareOptions prepare;
  prepare.queue = options.queue;
  prepare.timestamps = options.timestamps;
  prepare.label = options.label;
  if (plans.size() > 1 && plan.arena_bytes() != 0) {
    const size_t bytes = plan.arena_bytes();
    prepare.arena = Buffer(state.allocate({bytes, "arena"}), 0, DType::u8, {static_cast<int64_t>(bytes)});
  }
  for (const Plan& part : plans) {
    report.parts.push_back(state.prepare(part, prepare, false));
    report.prepare_time += watch.lap();
    report.point = state.submit(report.parts.back(), {}, options.waits, Submissions::Limit::checked);
    if (options.submitted != nullptr) *options.submitted = report.point;
    report.submit_time += watch.lap();
  }
  encoder.state_ = EncoderState::committed;
  state.counters.change([](Counters& counters) { ++counters.commits; });
  return report;
}

Profile profile_of(Device& device, const Report& report, std::chrono::nanoseconds timeout) {
  if (report.parts.empty())
    throw InvalidArgument("[executor] profile: expected the report of a run, got none");
  device.wait(report.point, timeout);
  Profile whole;
  for (const Program& part : report.parts) whole.append(Profile(device, part));
  return whole;
}

}  // namespace refrain
