// Work in stages: each is recorded, submitted to a queue of one device, and known by its label. Not a way to
// order data, which is ordered by itself: fences are for what memory does not show.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/device/profile.h"

namespace refrain {

struct StageOptions {
  uint32_t queue = 0;
  std::vector<Point> waits = {};  ///< of any session, queue or host point of this device
  graph::PlanOptions plan = {};
  bool timestamps = false;  ///< for EncoderSession::profile
};

enum class SessionState : uint8_t {
  idle,       ///< no stage is open; nothing is held by the device for it
  recording,  ///< a stage is open
  failed,     ///< a stage has failed: every call but state() throws its error
  moved_from,
};

/// Used by one thread at a time. Every call in a state that does not allow it throws InvalidArgument.
/// Dropping it in any state is safe: an open stage is dropped, what was submitted runs on.
class EncoderSession {
 public:
  /// `label` goes before the labels of the stages: "prefill / layer 3".
  explicit EncoderSession(Device device, std::string label = {});
  EncoderSession(EncoderSession&&) noexcept = default;
  EncoderSession& operator=(EncoderSession&& other) noexcept;
  ~EncoderSession() = default;

  /// Opens a stage and lends its encoder, which records and cannot be committed, finished or moved: until the
  /// stage ends. Only from idle. Throws InvalidArgument for an empty label or an option that is refused.
  CommandEncoder& begin_stage(std::string_view label, const StageOptions& options = {});
  /// The open stage's encoder.
  CommandEncoder& stage();

  /// Submits the open stage. A failure to plan or to submit it fails the session; what throws and leaves it
  /// recording (the queue is full, memory is short) leaves the stage open.
  Point commit_stage();
  /// As commit_stage; and no stage submitted later, on any queue, begins before this one has completed.
  Point fence_stage();
  /// Ends the open stage without submitting it.
  void drop_stage();

  /// Returns once every stage submitted so far has completed, whenever and however it was. Not while a stage
  /// is open. Throws the error of the first stage that failed, in the order of their submission, with its
  /// label; TimeoutError, naming the first unfinished stage, when `timeout` passes first.
  void wait(std::chrono::nanoseconds timeout = std::chrono::minutes(10));

  /// What the commands of the stages submitted with timestamps took, stage after stage in the order of their
  /// submission; fenced or not. Waits for every stage and throws as wait() does. A session keeps the spans of
  /// its timed stages until it ends.
  Profile profile(std::chrono::nanoseconds timeout = std::chrono::minutes(10));
  /// The same of the one stage that `stage` was returned for. Throws InvalidArgument when that is no stage of
  /// this session, or one without timestamps.
  Profile profile(const Point& stage, std::chrono::nanoseconds timeout = std::chrono::minutes(10));

  SessionState state() const { return state_.value; }
  /// How many stages have been submitted.
  size_t submitted() const { return submitted_; }

 private:
  struct Stage {
    std::string label;
    Point point;
    Program timed;     // none without timestamps
    size_t times = 0;  // of a timed one: index in times_
  };
  struct Times {
    Point point;
    Profile profile;
  };
  enum class Failure : uint8_t { none, invalid, refused, lost };
  // A state that says so when it was moved from.
  struct State {
    SessionState value = SessionState::idle;
    State() = default;
    State(State&& other) noexcept : value(std::exchange(other.value, SessionState::moved_from)) {}
  };

  void expect(SessionState state, const char* call) const;
  [[noreturn]] void fail(Failure kind, const std::string& label, const std::string& what);
  [[noreturn]] void fail_submit();
  [[noreturn]] void throw_failure() const;
  void await(std::chrono::nanoseconds timeout);
  void settle();
  void keep_times(const Stage& stage);
  Point submit_stage(const char* call);

  Device device_;
  std::string label_;
  State state_;
  std::unique_ptr<CommandEncoder> encoder_;  // the open stage's, or none; lent, hence not moved
  std::string stage_label_;
  StageOptions stage_options_;
  std::vector<Stage> pending_;  // not known to have completed, in the order of submission
  std::vector<Point> fences_;   // the last of each queue
  std::vector<Times> times_;    // of timed stages, in the order of submission; filled in once completed
  size_t submitted_ = 0;
  Failure failure_ = Failure::none;
  std::string failure_message_;
};

}  // namespace refrain
