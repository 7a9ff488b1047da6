// A group of kernels as one tile kernel: its tile function walks the members. The team does not know groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/device/plan.h"

namespace refrain::device::cpu {

/// What the functions below get as constants.
struct GroupWalk {
  struct Member {
    void (*region)(const TileArgs&, uint32_t, uint32_t, uint32_t, uint32_t) = nullptr;
    void* const* args = nullptr;
    const std::byte* constants = nullptr;
    uint32_t arg_count = 0;
    uint32_t private_arg = kNone;
    uint32_t units_per_unit = 1;  ///< units of the op in one of its component
  };
  struct Component {
    std::vector<Member> members;
    uint32_t units = 1;
    uint32_t units_per_tile = 1;
    uint32_t tiles = 1;
  };

  std::vector<Member> prologue;  ///< one, or none
  std::vector<Component> components;
  Launch launch;
  size_t value_row_bytes = 0;
  size_t member_scratch_offset_bytes = 0;
};

/// `args` and `constants` are where the program has put those of the plan.
GroupWalk make_group_walk(const Plan& plan, const Command& command, void* const* args,
                          const std::byte* constants);

/// TileKernel::prologue: the worker's scratch holds no rows yet.
void group_prologue(const TileArgs& args);
/// TileKernel::tiles.
void group_tiles(const TileArgs& args, uint32_t begin, uint32_t end);

}  // namespace refrain::device::cpu
