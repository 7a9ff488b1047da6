// A PlanData: commands with their kernels chosen, their order and memory decided. Plain data, never changed
// again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "refrain/backend/kernel.h"

namespace refrain::backend {

/// Memory of a backend. Addresses say where, `id` says which: order is derived from ids and offsets alone.
struct Allocation {
  uint64_t id = 0;  ///< never 0, never used again
  size_t bytes = 0;
  uint64_t device_address = 0;  ///< 0 when the device has no flat address
  void* host = nullptr;         ///< null when the host cannot reach it in place
};

/// Bytes [offset_bytes, offset_bytes + bytes) of an allocation. In a PlanData, a null allocation is the arena.
struct BufferView {
  const Allocation* allocation = nullptr;
  size_t offset_bytes = 0;
  size_t bytes = 0;
};

/// A contiguous part of one of a PlanData's arrays.
struct Range {
  uint32_t first = 0;
  uint32_t count = 0;
};

struct Argument {
  BufferView view;  ///< bytes = 0: an optional argument that is not bound
  Access access = Access::in;
  bool sealed = false;  ///< never written again: may be loaded ahead of the dependencies
};

enum class CommandKind : uint8_t {
  kernel,
  fence,         ///< nothing runs; all commands before it complete before any after it begins
  fused_group,   ///< several kernels that share tiles
  group_kernel,  ///< several commands that one kernel computes
};

enum class MemberRole : uint8_t {
  tile,      ///< runs for the units of each tile of its component
  prologue,  ///< runs for whole rows, once a worker and block of rows; what it writes lies in the worker's
             ///< scratch
};

/// A kernel as part of a group; runs by TileKernel::region.
struct FusedMember {
  const Kernel* kernel = nullptr;
  Range args;       ///< into PlanData::args: the schema's
  Range constants;  ///< into PlanData::constants, aligned to 16
  MemberRole role = MemberRole::tile;
  uint32_t component = kNone;       ///< index within the group's components
  uint32_t units = 1;               ///< of a row: a multiple of the component's
  uint32_t private_arg = kNone;     ///< index within `args` of the prologue's value, which is not bound there
  size_t row_scratch_bytes = 0;     ///< as in Launch; not 0: the scratch below is this member's alone
  size_t scratch_offset_bytes = 0;  ///< in the worker's scratch, aligned to 64
  size_t scratch_bytes = 0;         ///< 0: the member has none
};

/// Members of a group that share tiles, since they hand values on unit by unit.
struct FusedComponent {
  uint32_t units = 1;           ///< of a row
  uint32_t units_per_tile = 1;  ///< the last tile of a block may have fewer
};

/// Kernels that run as one command. A block of rows has the tiles of the first component, then of the second,
/// and so on; a tile runs the members of its component in their order. Scratch of a worker, each part aligned
/// to 64, without gaps: with a prologue the rows of its value; then those of each member with row_scratch_bytes; then what
/// the other members overwrite in turn. Rows are rows_per_block of them, and before them lie
/// kGroupHeaderBytes for the walker's own use.
struct FusedGroup {
  Range members;               ///< into PlanData::members, in order
  Range components;            ///< into PlanData::components
  size_t value_row_bytes = 0;  ///< of the prologue's value; 0: no prologue
};

inline constexpr size_t kGroupHeaderBytes = 64;

/// A command that a GroupKernel computes among others.
struct PlacedMember {
  const OpSchema* op = nullptr;
  Range args;          ///< into PlanData::args: the schema's; what the kernel elides has no bytes
  Range constants;     ///< into PlanData::constants, aligned to 16
  uint32_t place = 0;  ///< as GroupKernel::fits has said
};

/// Arguments that a member with a private one may have.
inline constexpr uint32_t kMaxPrivateArgs = 16;

struct PlanCommand {
  CommandKind kind = CommandKind::kernel;
  const Kernel* kernel = nullptr;             ///< of a command of that kind
  const GroupKernel* group_kernel = nullptr;  ///< of a command of that kind
  Range placed;                               ///< its members, in recorded order: into PlanData::placed
  Launch launch;
  /// Into PlanData::args: the schema's, then the live count, then scratch. Of several members: the schemas' of all,
  /// then these.
  Range args;
  Range constants;            ///< into PlanData::constants, aligned to 16
  Range deps;                 ///< into PlanData::deps: earlier commands that must have completed
  uint32_t live_arg = kNone;  ///< index within `args` of the live count, a u32
  uint32_t scratch_arg =
      kNone;  ///< index within `args` of the scratch of all walkers, then the workspace: scratch_bytes(launch, info)
  size_t ticket_offset_bytes = 0;  ///< of its counters, among those of the plan; aligned to 64
  uint32_t level = 0;              ///< 1 + the greatest level of its deps; fences do not count
  uint32_t label = 0;              ///< into PlanData::labels
  uint32_t group = kNone;          ///< into PlanData::groups
};

struct PlanData {
  std::vector<PlanCommand> commands;
  std::vector<Argument> args;
  std::vector<uint32_t> deps;
  std::vector<std::byte> constants;
  std::vector<std::string> labels;
  std::vector<FusedGroup> groups;
  std::vector<FusedMember> members;
  std::vector<FusedComponent> components;
  std::vector<PlacedMember> placed;
  size_t arena_bytes = 0;
  size_t ticket_bytes = 0;  ///< counters of all commands; the program's own, zeroed when it is prepared
};

/// Bytes of a command's scratch argument: of each walker, then the workspace.
size_t scratch_bytes(const Launch& launch, const DeviceInfo& info);

/// What a command is: its kernel's name, "fence", or the ops of a group,
/// "rms_norm+matmul*2+silu_mul".
std::string title(const PlanData& plan, const PlanCommand& command);
/// The op and name of argument `index` of a command: "output", "scratch", of a group "silu_mul.output".
std::string argument_title(const PlanData& plan, const PlanCommand& command, uint32_t index);
/// Names in order with "+" between; `name*n` for n in a row.
std::string joined(const std::vector<std::string_view>& names);

}  // namespace refrain::backend
