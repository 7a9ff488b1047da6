#include "refrain/stream/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "refrain/stream/device_state.h"

namespace refrain {
namespace {

// Longer waits than this have no end: now + timeout must not overflow.
constexpr std::chrono::nanoseconds kLongest = std::chrono::hours(24 * 365);

std::string_view name_of(SessionState state) {
  switch (state) {
    case SessionState::idle:
      return "no stage is open";
    case SessionState::recording:
      return "a stage is open";
    case SessionState::failed:
      return "it has failed";
    case SessionState::moved_from:
      return "it was moved from";
  }
  return "";
}

}  // namespace

EncoderSession::EncoderSession(Device device, std::string label)
    : device_(std::move(device)), label_(std::move(label)) {
  device_.live();
}

void EncoderSession::throw_failure() const {
  if (failure_ == Failure::lost) throw DeviceLost(failure_message_);
  if (failure_ == Failure::invalid) throw InvalidArgument(failure_message_);
  throw DeviceError(failure_message_);
}

void EncoderSession::fail(Failure kind, const std::string& label, const std::string& what) {
  encoder_.clear();
  state_.value = SessionState::failed;
  failure_ = kind;
  failure_message_ = fmt::format("[session] stage '{}' failed: {}", label, what);
  throw_failure();
}

void EncoderSession::expect(SessionState state, const char* call) const {
  if (state_.value == SessionState::failed) throw_failure();
  if (state_.value == state) return;
  throw InvalidArgument(
      fmt::format("[session] {}: {}{}", call, name_of(state_.value),
                  state_.value == SessionState::recording ? ": '" + stage_label_ + "'" : ""));
}

void EncoderSession::notice_failures() {
  for (const Stage& stage : pending_) {
    if (const std::string why = device_.checked().failure(stage.point); !why.empty()) {
      const bool lost = device_.checked().lost;
      fail(lost ? Failure::lost : Failure::refused, std::string(stage.label), why);
    }
  }
}

CommandEncoder& EncoderSession::begin_stage(std::string_view label, const StageOptions& options) {
  expect(SessionState::idle, "begin_stage");
  if (label.empty()) throw InvalidArgument("[session] begin_stage: expected a label, got none");
  DeviceState& device = device_.live();
  if (options.queue >= device.backend->info.queue_count) {
    throw InvalidArgument(fmt::format("[session] begin_stage: queue: expected less than {}, got {}",
                                      device.backend->info.queue_count, options.queue));
  }
  for (const Point& point : options.waits) device.check(point, "begin_stage");
  notice_failures();
  std::erase_if(pending_, [&](const Stage& stage) { return device_.reached(stage.point); });
  stage_label_ = label_.empty() ? std::string(label) : fmt::format("{} / {}", label_, label);
  stage_options_ = options;
  encoder_.clear();
  encoder_.push_back(device_.encoder());
  encoder_[0].lent_ = true;
  state_.value = SessionState::recording;
  return encoder_[0];
}

CommandEncoder& EncoderSession::stage() {
  expect(SessionState::recording, "stage");
  return encoder_[0];
}

Point EncoderSession::submit_stage(const char* call) {
  expect(SessionState::recording, call);
  if (encoder_[0].state() != EncoderState::recording) {
    fail(Failure::invalid, stage_label_, "its encoder was moved from");
  }
  CommitOptions options;
  options.label = stage_label_;
  options.queue = stage_options_.queue;
  options.plan = stage_options_.plan;
  options.waits = stage_options_.waits;
  options.waits.insert(options.waits.end(), fences_.begin(), fences_.end());
  Point point;
  try {
    point = encoder_[0].submit(options);
  } catch (const DeviceLost& error) {
    fail(Failure::lost, stage_label_, error.what());
  } catch (const InvalidArgument& error) {
    fail(Failure::invalid, stage_label_, error.what());
  } catch (const Error& error) {
    fail(Failure::refused, stage_label_, error.what());
  }
  encoder_.clear();
  state_.value = SessionState::idle;
  ++submitted_;
  pending_.push_back({stage_label_, point});
  return point;
}

Point EncoderSession::commit_stage() { return submit_stage("commit_stage"); }

Point EncoderSession::fence_stage() {
  const Point point = submit_stage("fence_stage");
  std::erase_if(fences_, [&](const Point& fence) { return fence.queue == point.queue; });
  fences_.push_back(point);
  return point;
}

void EncoderSession::drop_stage() {
  expect(SessionState::recording, "drop_stage");
  encoder_.clear();
  state_.value = SessionState::idle;
}

void EncoderSession::wait(std::chrono::nanoseconds timeout) {
  expect(SessionState::idle, "wait");
  const auto deadline = std::chrono::steady_clock::now() + std::min(timeout, kLongest);
  while (!pending_.empty()) {
    const Stage& stage = pending_.front();
    const std::chrono::nanoseconds left = deadline - std::chrono::steady_clock::now();
    try {
      device_.wait(stage.point, std::max(left, std::chrono::nanoseconds(0)));
    } catch (const TimeoutError&) {
      notice_failures();  // of a later stage, on another queue
      throw TimeoutError(fmt::format("[session] wait: stage '{}' has not completed within {} ms", stage.label,
                                     std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count()));
    } catch (const DeviceLost& error) {
      fail(Failure::lost, std::string(stage.label), error.what());
    } catch (const DeviceError& error) {
      fail(Failure::refused, std::string(stage.label), error.what());
    }
    pending_.erase(pending_.begin());
  }
}

}  // namespace refrain
