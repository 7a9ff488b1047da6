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

GraphSession::GraphSession(const Device& device)
    : device_(device), encoder_(std::make_unique<CommandEncoder>(device_.encoder())) {
  encoder_->lent_ = true;
}

CommandEncoder& GraphSession::recording(const char* call) {
  if (encoder_ == nullptr) {
    throw InvalidArgument(
        fmt::format("[executor] {}: expected a session that records, got one that was moved from", call));
  }
  encoder_->recording(call);
  return *encoder_;
}

CommandEncoder& GraphSession::encoder() { return recording("encoder"); }

Report GraphSession::finish(const FinishOptions& options) {
  CommandEncoder& encoder = recording("finish");
  DeviceState& state = device_.live();
  encoder.check_options(options.queue, options.waits);
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
    prepare.arena = device_.buffer(DType::u8, {static_cast<int64_t>(plan.arena_bytes())}, "arena");
  }
  for (const Plan& part : plans) {
    report.parts.push_back(state.prepare(part, prepare, false));
    report.prepare_time += watch.lap();
    submitted_ = report.point =
        state.submit(report.parts.back(), {}, options.waits, Submissions::Limit::checked);
    report.submit_time += watch.lap();
  }
  encoder.state_ = EncoderState::committed;
  state.counters.change([](Counters& counters) { ++counters.commits; });
  return report;
}

Profile GraphExecutor::profile(const Report& report, std::chrono::nanoseconds timeout) const {
  if (report.parts.empty())
    throw InvalidArgument("[executor] profile: expected the report of a run, got none");
  Device device = device_;
  device.wait(report.point, timeout);
  Profile profile;
  for (const Program& part : report.parts) profile.append(Profile(device, part));
  return profile;
}

}  // namespace refrain
