#include "refrain/device/cpu/group.h"

#include <algorithm>
#include <array>
#include <new>

#include "refrain/core/checked.h"

namespace refrain::device::cpu {
namespace {

/// At the begin of a worker's scratch: which block of rows the value behind it belongs to.
struct Header {
  uint32_t block = kNone;
};
static_assert(sizeof(Header) <= kGroupHeaderBytes);

const GroupWalk& walk_of(const TileArgs& args) { return *reinterpret_cast<const GroupWalk*>(args.constants); }

struct Rows {
  uint32_t begin = 0;
  uint32_t end = 0;
};

/// Units [begin, end) of the component, on rows of the group.
void run_member(const GroupWalk& walk, const GroupWalk::Member& member, const TileArgs& group,
                const Rows& rows, uint32_t begin, uint32_t end) {
  TileArgs args;
  args.args = member.args;
  args.constants = member.constants;
  args.scratch = group.scratch + walk.member_scratch_offset_bytes;
  args.live_rows = group.live_rows;
  std::array<void*, kMaxPrivateArgs> own;
  if (member.private_arg != kNone) {
    std::copy_n(member.args, member.arg_count, own.begin());
    // Where row 0 would lie: kernels count rows from there, and touch those of the block only.
    const auto value = reinterpret_cast<uintptr_t>(group.scratch + kGroupHeaderBytes);
    own[member.private_arg] = reinterpret_cast<void*>(value - rows.begin * walk.value_row_bytes);
    args.args = own.data();
  }
  member.region(args, rows.begin, rows.end, begin * member.units_per_unit, end * member.units_per_unit);
}

}  // namespace

GroupWalk make_group_walk(const Plan& plan, const Command& command, void* const* args,
                          const std::byte* constants) {
  const Group& group = plan.groups[command.group];
  GroupWalk walk;
  walk.launch = command.launch;
  walk.value_row_bytes = group.value_row_bytes;
  if (group.value_row_bytes != 0) {
    walk.member_scratch_offset_bytes =
        kGroupHeaderBytes + align_up(command.launch.rows_per_block * group.value_row_bytes, 64);
  }
  for (uint32_t c = 0; c < group.components.count; ++c) {
    const Component& component = plan.components[group.components.first + c];
    walk.components.push_back(
        {{}, component.units, component.units_per_tile, ceil_div(component.units, component.units_per_tile)});
  }
  for (uint32_t m = 0; m < group.members.count; ++m) {
    const Member& member = plan.members[group.members.first + m];
    GroupWalk::Member own;
    own.region = static_cast<const TileKernel*>(member.kernel->entry)->region;
    own.args = args + member.args.first;
    own.constants = constants + member.constants.first;
    own.arg_count = member.args.count;
    own.private_arg = member.private_arg;
    if (member.role == MemberRole::prologue) {
      own.units_per_unit = member.units;
      walk.prologue.push_back(own);
    } else {
      GroupWalk::Component& component = walk.components[member.component];
      own.units_per_unit = member.units / component.units;
      component.members.push_back(own);
    }
  }
  return walk;
}

void group_prologue(const TileArgs& args) {
  if (!walk_of(args).prologue.empty()) new (args.scratch) Header;
}

void group_tiles(const TileArgs& args, uint32_t begin, uint32_t end) {
  const GroupWalk& walk = walk_of(args);
  for (uint32_t tile = begin; tile < end; ++tile) {
    const uint32_t block = tile / walk.launch.tiles_per_block;
    uint32_t rest = tile % walk.launch.tiles_per_block;
    Rows rows;
    rows.begin = block * walk.launch.rows_per_block;
    rows.end = rows.begin + std::min(walk.launch.rows_per_block, args.live_rows - rows.begin);
    if (!walk.prologue.empty()) {
      auto& header = *std::launder(reinterpret_cast<Header*>(args.scratch));
      if (header.block != block) {
        run_member(walk, walk.prologue[0], args, rows, 0, 1);
        header.block = block;
      }
    }
    size_t c = 0;
    while (rest >= walk.components[c].tiles) rest -= walk.components[c++].tiles;
    const GroupWalk::Component& component = walk.components[c];
    const uint32_t first = rest * component.units_per_tile;
    const uint32_t last = std::min(first + component.units_per_tile, component.units);
    for (const GroupWalk::Member& member : component.members)
      run_member(walk, member, args, rows, first, last);
  }
}

}  // namespace refrain::device::cpu
