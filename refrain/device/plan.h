// A Plan: commands with their kernels chosen, their order and memory decided. Plain data, never changed
// again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "refrain/device/kernel.h"

namespace refrain::device {

/// Memory of a backend. Addresses say where, `id` says which: order is derived from ids and offsets alone.
struct Allocation {
  uint64_t id = 0;  ///< never 0, never used again
  size_t bytes = 0;
  uint64_t device_address = 0;  ///< 0 when the device has no flat address
  void* host = nullptr;         ///< null when the host cannot reach it in place
};

/// Bytes [offset_bytes, offset_bytes + bytes) of an allocation. In a Plan, a null allocation is the arena.
struct BufferView {
  const Allocation* allocation = nullptr;
  size_t offset_bytes = 0;
  size_t bytes = 0;
};

/// A contiguous part of one of a Plan's arrays.
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
  fence,  ///< nothing runs; all commands before it complete before any after it begins
};

inline constexpr uint32_t kNone = UINT32_MAX;

struct Command {
  CommandKind kind = CommandKind::kernel;
  const Kernel* kernel = nullptr;
  Launch launch;
  Range args;                 ///< into Plan::args: the schema's, then the live count, then scratch
  Range constants;            ///< into Plan::constants, aligned to 16
  Range deps;                 ///< into Plan::deps: earlier commands that must have completed
  uint32_t live_arg = kNone;  ///< index within `args` of the live count, a u32
  uint32_t scratch_arg =
      kNone;           ///< index within `args` of the scratch: compute_units times launch.scratch_bytes
  uint32_t level = 0;  ///< 1 + the greatest level of its deps; fences do not count
  uint32_t label = 0;  ///< into Plan::labels
};

struct Plan {
  std::vector<Command> commands;
  std::vector<Argument> args;
  std::vector<uint32_t> deps;
  std::vector<std::byte> constants;
  std::vector<std::string> labels;
  size_t arena_bytes = 0;
};

}  // namespace refrain::device
