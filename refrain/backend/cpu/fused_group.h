// A group of kernels as one tile kernel: its tile function walks the members. The team does not know groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::backend::cpu {

/// What the functions below get as constants.
struct GroupWalk {
  struct Member {
    const TileKernel* kernel = nullptr;
    bool prefetches = false;
    void* const* args = nullptr;
    const std::byte* constants = nullptr;
    uint32_t arg_count = 0;
    uint32_t private_arg = kNone;
    uint32_t units_per_unit = 1;  ///< units of the op in one of its component
    size_t scratch_offset_bytes = 0;
    bool keeps_rows = false;  ///< its scratch begins with a header
  };
  struct Component {
    Range members;
    uint32_t units = 1;
    uint32_t units_per_tile = 1;
    uint32_t tiles = 1;
  };

  Launch launch;
  size_t value_row_bytes = 0;  ///< not 0: the first member is the prologue
  std::vector<Component> components;
  std::vector<Member> members;               ///< the prologue, then those of each component
  std::vector<size_t> header_offsets_bytes;  ///< in the scratch of a worker
};

/// `args` and `constants` are where the program has put those of the plan.
GroupWalk make_group_walk(const PlanData& plan, const PlanCommand& command, void* const* args,
                          const std::byte* constants);

/// True when `kernel` has something to load ahead of the dependencies, and all of it is sealed. `args`: of
/// the plan, the schema's.
bool may_prefetch(const PlanData& plan, const Kernel& kernel, const Range& args);

/// TileKernel::prefetch of the members that may, called only if one does.
bool may_prefetch(const GroupWalk& walk);
void group_prefetch(const TileArgs& args);
/// TileKernel::prologue: the worker's scratch holds no rows yet.
void group_prologue(const TileArgs& args);
/// TileKernel::tiles.
void group_tiles(const TileArgs& args, uint32_t begin, uint32_t end);

}  // namespace refrain::backend::cpu
