// What a kernel is: an op for some types on some hardware, as tiles that any worker may walk.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "refrain/backend/op.h"
#include "refrain/backend/rewrite.h"

namespace refrain::backend {

inline constexpr uint32_t kNone = UINT32_MAX;

/// What a backend says of itself. Data; does not change.
struct DeviceInfo {
  std::string backend;    ///< "cpu"
  std::string name;       ///< "AMD EPYC, 2 workers, avx2"
  uint64_t features = 0;  ///< bits that Kernel::needs is tested against; the backend's own
  uint32_t queue_count = 1;
  uint32_t compute_units = 1;  ///< workers, SMs: for scratch and walkers, never for boundaries of a reduction
  size_t buffer_alignment_bytes = 64;
  double ns_per_tick = 1.0;
  bool host_memory = false;  ///< memory of kind device can be read and written by the host in place
  /// Any commands whose kernels compute regions can be one command: the backend walks their kernels, which are C++ functions,
  /// tile by tile. False: only those that a GroupKernel computes.
  bool composes = false;
  /// Commands of more rows are not composed, unless PlanOptions says otherwise: where boundaries cost little, they are worth
  /// less then than work that workers share.
  uint32_t most_fused_rows = UINT32_MAX;
};

/// The work of one command. The number of tiles is ceil(live rows / rows_per_block) * tiles_per_block; tiles
/// of one block are numbered consecutively. What else a launch needs on its hardware (threads, shared memory) is in
/// the backend's own part of the kernel's row.
struct Launch {
  uint32_t rows = 1;  ///< capacity: a larger live count is taken as this
  uint32_t rows_per_block = 1;
  uint32_t tiles_per_block = 1;
  size_t scratch_bytes = 0;  ///< for each walker; plans round it up to a multiple of 64
  /// In a group, where not 0: scratch for each row of the group's blocks, in place of scratch_bytes; it keeps
  /// what TileKernel::rows_prologue has left there, while other scratch is lost from one region to the next.
  size_t row_scratch_bytes = 0;
  uint32_t walkers = 0;        ///< what has scratch of its own: 0: DeviceInfo::compute_units
  size_t workspace_bytes = 0;  ///< for the command, behind the walkers' scratch; unspecified when it begins
  /// Counters of the command: zero when a program is prepared, left zero by each run, in memory of nothing else's.
  size_t ticket_bytes = 0;
};

/// What the three functions of a tile kernel get.
struct TileArgs {
  void* const* args =
      nullptr;  ///< in the order of the schema; null for an unbound one; a weight: its packed bytes
  const std::byte* constants = nullptr;  ///< the op's own struct
  std::byte* scratch = nullptr;          ///< this worker's, aligned to 64
  uint32_t live_rows = 1;                ///< rows to compute; the capacity when there is no live count

  template <class T>
  T* arg(size_t index) const {
    return static_cast<T*>(args[index]);
  }
  template <class T>
  const T& constants_as() const {
    return *reinterpret_cast<const T*>(constants);
  }
};

/// A kernel of a backend that walks tiles on host threads: three functions that never throw.
struct TileKernel {
  /// May load sealed arguments, and nothing else, before the command's dependencies have completed. May be
  /// null.
  void (*prefetch)(const TileArgs& args) = nullptr;
  /// Once a worker and command, after the dependencies; writes only `scratch`. May be null.
  void (*prologue)(const TileArgs& args) = nullptr;
  /// Tiles [begin, end). Any worker, any order, each tile once.
  void (*tiles)(const TileArgs& args, uint32_t begin, uint32_t end) = nullptr;
  /// Live rows [row_begin, row_end) and of each the units [unit_begin, unit_end): any rectangles that
  /// together are all of it give the bits of `tiles`. Needs no prologue; with row_scratch_bytes, the last call
  /// of rows_prologue with this scratch was for the same rows. Null where Kernel::regions is false.
  void (*region)(const TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
                 uint32_t unit_end) = nullptr;
  /// Writes to `scratch` what the units of live rows [row_begin, row_end) share, once for any number of
  /// regions of these rows. Null where Kernel::keeps_rows is false.
  void (*rows_prologue)(const TileArgs& args, uint32_t row_begin, uint32_t row_end) = nullptr;
};

/// How commands fit a kernel that computes several at once.
enum class Fit : uint8_t {
  no,
  part,   ///< not yet, but more commands can make it whole
  whole,  ///< the kernel computes just these
};

/// One argument of a command in a set.
struct SetArgument {
  uint32_t value =
      kNone;             ///< arguments of a set that are the same bytes have the same number; kNone: unbound
  bool outside = false;  ///< memory, or a value that a command outside the set touches too
};

struct SetMember {
  OpCall call;
  std::span<const SetArgument> args;  ///< in the order of the schema
};

/// Commands that one kernel might compute, in recorded order. They have the same rows and the same live count.
struct SetCall {
  std::span<const SetMember> members;
  uint32_t rows = 1;
};

/// In which numerics class a kernel for several commands computes those of one op.
struct OpClass {
  std::string_view op;
  std::string_view numerics;
};

/// A kernel that computes several commands as one: for backends that do not compose kernels. Fuses a set only where
/// it is all that the set does, bit for bit as its numerics class says.
struct GroupKernel {
  std::string_view name;      ///< "norm_qkv_q4_f32"
  std::string_view numerics;  ///< as Kernel::numerics: of its members, unless `classes` says otherwise
  uint64_t needs = 0;         ///< features required
  /// How the members fit. `places`: one a member, written unless the answer is no: its place among the parts of the
  /// kernel, which `entry` knows. Compares ops by name. Adding a command to a set never turns `no` into a better answer.
  Fit (*fits)(const SetCall& call, std::span<uint32_t> places) = nullptr;
  /// True when the value of this argument needs no memory: never for one that is touched outside. Null: none is.
  bool (*elides)(const SetCall& call, uint32_t member, uint32_t argument) = nullptr;
  /// Of a set that is whole.
  Launch (*launch)(const SetCall& call, const DeviceInfo& info) = nullptr;
  const void* entry = nullptr;  ///< the backend's own
  /// The ops whose members it computes bit for bit as kernels of these classes do.
  std::span<const OpClass> classes = {};

  std::string_view numerics_of(std::string_view op) const {
    for (const OpClass& row : classes) {
      if (row.op == op) return row.numerics;
    }
    return numerics;
  }
};

/// One row of a backend's kernel table. Of the rows that accept a call, the first is taken.
struct Kernel {
  std::string_view name;  ///< "rms_norm_f32_avx2"
  const OpSchema* op = nullptr;
  std::string_view numerics;  ///< mode, instruction, blocking, order; equal classes give equal bits of a row
  uint64_t needs = 0;         ///< features required
  uint64_t prefetches = 0;    ///< bit i: argument i may be loaded before the dependencies when it is sealed
  /// Of calls whose dtypes the schema lists; where it lists several for an argument, what a kernel tests first.
  bool (*accepts)(const OpCall& call) = nullptr;
  Launch (*launch)(const OpCall& call, const DeviceInfo& info) = nullptr;
  const void* entry = nullptr;  ///< the backend's own: a TileKernel, a cubin symbol
  bool regions = false;       ///< computes any rectangle of rows and units, so that it may be part of a group
  bool keeps_rows = false;    ///< has Launch::row_scratch_bytes and, for hosts, TileKernel::rows_prologue
  uint32_t unit_granule = 1;  ///< units that it does best in multiples of
};

/// What a backend computes with: its kernels, its kernels for several commands, and what it would rather have instead of a
/// call. The first that fits is taken.
struct KernelTables {
  KernelTables() = default;
  KernelTables(std::span<const Kernel> kernel_rows, std::span<const GroupKernel> group_rows,
               std::span<const Rewrite> rewrite_rows = {})
      : kernels(kernel_rows), groups(group_rows), rewrites(rewrite_rows) {}
  /// Kernels alone.
  template <class Rows>
    requires std::convertible_to<const Rows&, std::span<const Kernel>>
  KernelTables(const Rows& rows) : kernels(rows) {}

  std::span<const Kernel> kernels;
  std::span<const GroupKernel> groups;
  std::span<const Rewrite> rewrites;
};

}  // namespace refrain::backend
