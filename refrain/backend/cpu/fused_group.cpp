#include "refrain/backend/cpu/fused_group.h"

#include <algorithm>
#include <array>
#include <new>

#include "refrain/core/checked.h"

namespace refrain::backend::cpu {
namespace {

/// Before the rows that a worker keeps in its scratch: the block that they belong to.
struct Header {
  uint32_t block = kNone;
};
static_assert(sizeof(Header) <= kGroupHeaderBytes);

Header& header_at(std::byte* part) { return *std::launder(reinterpret_cast<Header*>(part)); }

const GroupWalk& walk_of(const TileArgs& args) { return *reinterpret_cast<const GroupWalk*>(args.constants); }

struct Rows {
  uint32_t block = 0;
  uint32_t begin = 0;
  uint32_t end = 0;
};

/// Units [begin, end) of the component, on rows of the group.
void run_member(const GroupWalk& walk, const GroupWalk::Member& member, const TileArgs& group,
                const Rows& rows, uint32_t begin, uint32_t end) {
  TileArgs args;
  args.args = member.args;
  args.constants = member.constants;
  args.scratch = group.scratch + member.scratch_offset_bytes;
  args.live_rows = group.live_rows;
  std::array<void*, kMaxPrivateArgs> own;
  if (member.private_arg != kNone) {
    std::copy_n(member.args, member.arg_count, own.begin());
    // Where row 0 would lie: kernels count rows from there, and touch those of the block only.
    const auto value = reinterpret_cast<uintptr_t>(group.scratch + kGroupHeaderBytes);
    own[member.private_arg] = reinterpret_cast<void*>(value - rows.begin * walk.value_row_bytes);
    args.args = own.data();
  }
  if (member.keeps_rows) {
    Header& kept = header_at(args.scratch);
    args.scratch += kGroupHeaderBytes;
    if (kept.block != rows.block) {
      member.kernel->rows_prologue(args, rows.begin, rows.end);
      kept.block = rows.block;
    }
  }
  member.kernel->region(args, rows.begin, rows.end, begin * member.units_per_unit,
                        end * member.units_per_unit);
}

}  // namespace

GroupWalk make_group_walk(const PlanData& plan, const PlanCommand& command, void* const* args,
                          const std::byte* constants) {
  const FusedGroup& group = plan.groups[command.group];
  GroupWalk walk;
  walk.launch = command.launch;
  walk.value_row_bytes = group.value_row_bytes;
  if (group.value_row_bytes != 0) walk.header_offsets_bytes.push_back(0);
  const auto add_members = [&](MemberRole role, uint32_t index, uint32_t units) {
    const auto first = static_cast<uint32_t>(walk.members.size());
    for (uint32_t m = 0; m < group.members.count; ++m) {
      const FusedMember& member = plan.members[group.members.first + m];
      if (member.role != role || member.component != index) continue;
      GroupWalk::Member& own = walk.members.emplace_back();
      own.kernel = static_cast<const TileKernel*>(member.kernel->entry);
      own.prefetches = may_prefetch(plan, *member.kernel, member.args);
      own.args = args + member.args.first;
      own.constants = constants + member.constants.first;
      own.arg_count = member.args.count;
      own.private_arg = member.private_arg;
      own.units_per_unit = member.units / units;
      own.scratch_offset_bytes = member.scratch_offset_bytes;
      own.keeps_rows = member.row_scratch_bytes != 0;
      if (own.keeps_rows) walk.header_offsets_bytes.push_back(own.scratch_offset_bytes);
    }
    return Range{first, static_cast<uint32_t>(walk.members.size()) - first};
  };
  add_members(MemberRole::prologue, kNone, 1);
  for (uint32_t c = 0; c < group.components.count; ++c) {
    const FusedComponent& component = plan.components[group.components.first + c];
    walk.components.push_back({add_members(MemberRole::tile, c, component.units), component.units,
                               component.units_per_tile,
                               ceil_div(component.units, component.units_per_tile)});
  }
  return walk;
}

bool may_prefetch(const PlanData& plan, const Kernel& kernel, const Range& args) {
  if (static_cast<const TileKernel*>(kernel.entry)->prefetch == nullptr) return false;
  bool any = false;
  for (uint32_t i = 0; i < args.count && i < 64; ++i) {
    const Argument& argument = plan.args[args.first + i];
    if ((kernel.prefetches >> i & 1u) == 0 || argument.view.bytes == 0) continue;
    if (!argument.sealed) return false;
    any = true;
  }
  return any;
}

bool may_prefetch(const GroupWalk& walk) {
  return std::ranges::any_of(walk.members, &GroupWalk::Member::prefetches);
}

void group_prefetch(const TileArgs& args) {
  for (const GroupWalk::Member& member : walk_of(args).members) {
    if (member.prefetches) member.kernel->prefetch({member.args, member.constants, nullptr, args.live_rows});
  }
}

void group_prologue(const TileArgs& args) {
  for (const size_t offset : walk_of(args).header_offsets_bytes) new (args.scratch + offset) Header;
}

void group_tiles(const TileArgs& args, uint32_t begin, uint32_t end) {
  const GroupWalk& walk = walk_of(args);
  for (uint32_t tile = begin; tile < end; ++tile) {
    Rows rows;
    rows.block = tile / walk.launch.tiles_per_block;
    rows.begin = rows.block * walk.launch.rows_per_block;
    rows.end = rows.begin + std::min(walk.launch.rows_per_block, args.live_rows - rows.begin);
    if (walk.value_row_bytes != 0) {
      Header& value = header_at(args.scratch);
      if (value.block != rows.block) {
        run_member(walk, walk.members[0], args, rows, 0, 1);
        value.block = rows.block;
      }
    }
    uint32_t rest = tile % walk.launch.tiles_per_block;
    size_t c = 0;
    while (rest >= walk.components[c].tiles) rest -= walk.components[c++].tiles;
    const GroupWalk::Component& component = walk.components[c];
    const uint32_t first = rest * component.units_per_tile;
    const uint32_t last = std::min(first + component.units_per_tile, component.units);
    for (uint32_t m = component.members.first; m < component.members.first + component.members.count; ++m)
      run_member(walk, walk.members[m], args, rows, first, last);
  }
}

}  // namespace refrain::backend::cpu
