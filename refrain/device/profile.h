// What each command of a program run took, for tables and traces. Measured as the program runs: nothing is
// put in order or waited for to measure it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "refrain/device/device.h"

namespace refrain {

/// One command of a run. Fences have none.
struct ProfileSpan {
  uint32_t command = 0;  ///< index in the plan
  uint32_t level = 0;
  std::string kernel;      ///< or the ops of a group
  std::string label;       ///< scopes and label of the recording
  std::string submission;  ///< label of the program: in a profile of several, which one
  double begin_ns = 0;     ///< of the device's clock
  double ready_ns = 0;  ///< past the wait for what it depends on: its own work lies between this and the end
  double end_ns = 0;
};

/// What the commands of one kernel, label or submission took together.
struct ProfileRow {
  std::string name;
  size_t commands = 0;
  double total_ns = 0;  ///< sum of their work; they may have run at the same time
  double share = 0;     ///< of the sum over all commands
};

enum class ProfileKey : uint8_t { kernel, label, submission };

class Profile {
 public:
  Profile() = default;
  /// Without spans, to append to.
  explicit Profile(std::string label) : label_(std::move(label)) {}
  /// The last completed run of a program that was prepared with timestamps; the caller has waited for it.
  /// Throws as Device::timestamps_ns.
  Profile(const Device& device, const Program& program);

  const std::string& label() const { return label_; }  ///< of the program, or of all that was appended
  /// In the order of the plan.
  const std::vector<ProfileSpan>& spans() const { return spans_; }
  /// From the first begin to the last end.
  double duration_ns() const;
  /// Sum of all work, from ready to end: more than the duration when commands ran at the same time.
  double busy_ns() const;

  /// Appends the spans of another run, of a part of the same recording for example.
  void append(const Profile& other);
  /// The greatest total first; equal ones by name.
  std::vector<ProfileRow> rows(ProfileKey key) const;
  /// rows() as text, a line each: name (control characters as '?'), commands, total in µs, share.
  std::string table(ProfileKey key) const;
  /// In the JSON format of chrome://tracing and Perfetto: commands that overlap lie in different rows. What
  /// is no UTF-8 in a label is replaced by U+FFFD.
  std::string chrome_trace() const;

 private:
  std::string label_;
  std::vector<ProfileSpan> spans_;
};

}  // namespace refrain
