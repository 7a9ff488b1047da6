#include "refrain/device/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "refrain/core/deadline.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

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

EncoderSession& EncoderSession::operator=(EncoderSession&& other) noexcept {
  if (this == &other) return *this;
  std::destroy_at(this);
  return *std::construct_at(this, std::move(other));
}

void EncoderSession::throw_failure() const {
  if (failure_ == Failure::lost) throw DeviceLost(failure_message_);
  if (failure_ == Failure::invalid) throw InvalidArgument(failure_message_);
  throw DeviceError(failure_message_);
}

void EncoderSession::fail(Failure kind, const std::string& label, const std::string& what) {
  std::string message = fmt::format("[session] stage '{}' failed: {}", label, what);
  encoder_.reset();
  state_.value = SessionState::failed;
  failure_ = kind;
  failure_message_ = std::move(message);
  throw_failure();
}

void EncoderSession::expect(SessionState state, const char* call) const {
  if (state_.value == SessionState::failed) throw_failure();
  if (state_.value == state) return;
  throw InvalidArgument(
      fmt::format("[session] {}: {}{}", call, name_of(state_.value),
                  state_.value == SessionState::recording ? ": '" + stage_label_ + "'" : ""));
}

// Lets go of the stages that have completed. Whether one failed is asked after it was seen to have completed:
// one that failed in between would be forgotten.
void EncoderSession::settle() {
  DeviceState& device = device_.checked();
  for (size_t i = 0; i < pending_.size();) {
    const Stage& stage = pending_[i];
    if (device.backend->completed(stage.point.queue) < stage.point.value) {
      ++i;
      continue;
    }
    if (const std::string why = device.submissions.failure(stage.point); !why.empty()) {
      fail(device.lost ? Failure::lost : Failure::refused, std::string(stage.label), why);
    }
    keep_times(stage);
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void EncoderSession::keep_times(const Stage& stage) {
  if (stage.timed) times_[stage.times].profile = Profile(device_, stage.timed);
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
  settle();
  stage_label_ = label_.empty() ? std::string(label) : fmt::format("{} / {}", label_, label);
  stage_options_ = options;
  encoder_ = std::make_unique<CommandEncoder>(device_.encoder());
  encoder_->lent_ = true;
  state_.value = SessionState::recording;
  return *encoder_;
}

CommandEncoder& EncoderSession::stage() {
  expect(SessionState::recording, "stage");
  return *encoder_;
}

Point EncoderSession::submit_stage(const char* call) {
  expect(SessionState::recording, call);
  CommitOptions options;
  options.label = stage_label_;
  options.queue = stage_options_.queue;
  options.plan = stage_options_.plan;
  options.waits = stage_options_.waits;
  options.waits.insert(options.waits.end(), fences_.begin(), fences_.end());
  // All that may throw comes before the submit: what has been submitted is known here.
  fences_.reserve(fences_.size() + 1);
  pending_.push_back({stage_label_, {}, {}, times_.size()});
  Stage& stage = pending_.back();
  try {
    if (stage_options_.timestamps) times_.emplace_back();
    stage.point = encoder_->submit(options, stage_options_.timestamps ? &stage.timed : nullptr);
  } catch (...) {
    times_.resize(stage.times);
    pending_.pop_back();
    if (encoder_->state() == EncoderState::recording) throw;  // the stage stays open: for a full queue, say
    fail_submit();
  }
  if (stage.timed) times_.back().point = stage.point;
  encoder_.reset();
  state_.value = SessionState::idle;
  ++submitted_;
  return stage.point;
}

// The stage is spent by what is being handled: a user's kernel may throw what it likes when it is chosen.
void EncoderSession::fail_submit() {
  try {
    throw;
  } catch (const DeviceLost& error) {
    fail(Failure::lost, stage_label_, error.what());
  } catch (const InvalidArgument& error) {
    fail(Failure::invalid, stage_label_, error.what());
  } catch (const std::exception& error) {
    fail(Failure::refused, stage_label_, error.what());
  } catch (...) {
    fail(Failure::refused, stage_label_, "no exception of the standard library");
  }
}

Point EncoderSession::commit_stage() { return submit_stage("commit_stage"); }

Point EncoderSession::fence_stage() {
  const Point point = submit_stage("fence_stage");
  std::erase_if(fences_, [&](const Point& fence) { return fence.queue == point.queue; });
  fences_.push_back(point);  // there is room
  return point;
}

void EncoderSession::drop_stage() {
  expect(SessionState::recording, "drop_stage");
  encoder_.reset();
  state_.value = SessionState::idle;
}

void EncoderSession::wait(std::chrono::nanoseconds timeout) {
  expect(SessionState::idle, "wait");
  await(timeout);
}

Profile EncoderSession::profile(std::chrono::nanoseconds timeout) {
  expect(SessionState::idle, "profile");
  if (times_.empty()) throw InvalidArgument("[session] profile: expected stages with timestamps, got none");
  await(timeout);
  Profile all(label_);
  for (const Times& times : times_) all.append(times.profile);
  return all;
}

Profile EncoderSession::profile(const Point& stage, std::chrono::nanoseconds timeout) {
  expect(SessionState::idle, "profile");
  const auto found = std::ranges::find_if(times_, [&](const Times& times) {
    return times.point.backend == stage.backend && times.point.queue == stage.queue &&
           times.point.value == stage.value;
  });
  if (found == times_.end()) {
    throw InvalidArgument("[session] profile: expected the point of a stage with timestamps, got another");
  }
  await(timeout);
  return found->profile;
}

void EncoderSession::await(std::chrono::nanoseconds timeout) {
  const auto deadline = deadline_after(timeout);
  while (!pending_.empty()) {
    const Stage& stage = pending_.front();
    const std::chrono::nanoseconds left = deadline - std::chrono::steady_clock::now();
    try {
      device_.wait(stage.point, std::max(left, std::chrono::nanoseconds(0)));
      keep_times(stage);
    } catch (const TimeoutError&) {
      settle();  // a later stage, on another queue, may have failed; or this one has completed just now
      if (pending_.empty()) return;
      throw TimeoutError(fmt::format("[session] wait: stage '{}' has not completed within {} ms",
                                     pending_.front().label,
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
