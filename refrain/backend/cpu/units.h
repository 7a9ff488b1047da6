// What workers take of a program at once: commands, and runs of cheap commands. Knows steps, not replays.
//
// To hand a value from one core to another costs 100 ns and more; a command may cost less than that. Cheap
// commands that follow each other in the plan therefore make a run, which one worker walks without claims or
// gates between its members.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace refrain::backend::cpu {

/// Commands [first, first + count) of a program; an interval of the plan's order, as all units together are.
/// Hence the units that one waits for lie before it.
struct Unit {
  uint32_t first = 0;
  uint32_t count = 0;      ///< 0: a fence; 1: a command whose tiles are shared; more: a run
  uint32_t dep_first = 0;  ///< into Units::deps
  uint32_t dep_count = 0;
};

struct Units {
  std::vector<Unit> all;
  std::vector<uint32_t> deps;  ///< units that must be done
};

/// What is to be known of a command.
struct Work {
  static constexpr uint32_t kFence = UINT32_MAX;
  static constexpr uint32_t kAlone = UINT32_MAX - 1;  ///< many tiles, or too long

  uint32_t ns = kAlone;    ///< estimated; of a command that may join a run
  uint32_t dep_first = 0;  ///< into the commands' deps
  uint32_t dep_count = 0;
};

/// The most that a member of a run may take: what handing over to another core costs.
inline constexpr uint32_t kMemberNs = 150;

/// Joins what may be joined such that, of the commands that may not, none comes to wait for another that it
/// did not wait for before.
Units make_units(std::span<const Work> commands, std::span<const uint32_t> deps);

}  // namespace refrain::backend::cpu
