// What a kernel is: an op for some types on some hardware, as tiles that any worker may walk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "refrain/backend/op.h"

namespace refrain::backend {

/// What a backend says of itself. Data; does not change.
struct DeviceInfo {
  std::string backend;    ///< "cpu"
  std::string name;       ///< "AMD EPYC, 2 workers, avx2"
  uint64_t features = 0;  ///< bits that Kernel::needs is tested against; the backend's own
  uint32_t queue_count = 1;
  uint32_t compute_units = 1;  ///< workers, SMs: for scratch and walkers, never for boundaries of a reduction
  size_t buffer_alignment_bytes = 64;
  double ns_per_tick = 1.0;
  bool host_memory = false;  ///< allocations can be read and written by the host in place
};

/// The work of one command. The number of tiles is ceil(live rows / rows_per_block) * tiles_per_block; tiles
/// of one block are numbered consecutively.
struct Launch {
  uint32_t rows = 1;  ///< capacity: a larger live count is taken as this
  uint32_t rows_per_block = 1;
  uint32_t tiles_per_block = 1;
  size_t scratch_bytes = 0;  ///< for each worker; plans round it up to a multiple of 64
  /// In a group, where not 0: scratch for each row of the group's blocks, in place of scratch_bytes; it keeps
  /// what TileKernel::rows_prologue has left there, while other scratch is lost from one region to the next.
  size_t row_scratch_bytes = 0;
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

/// One row of a backend's kernel table. Of the rows that accept a call, the first is taken.
struct Kernel {
  std::string_view name;  ///< "rms_norm_f32_avx2"
  const OpSchema* op = nullptr;
  std::string_view numerics;  ///< mode, instruction, blocking, order; equal classes give equal bits of a row
  uint64_t needs = 0;         ///< features required
  uint64_t prefetches = 0;    ///< bit i: argument i may be loaded before the dependencies when it is sealed
  bool (*accepts)(const OpCall& call) = nullptr;
  Launch (*launch)(const OpCall& call, const DeviceInfo& info) = nullptr;
  const void* entry = nullptr;  ///< the backend's own: a TileKernel, a cubin symbol
  bool regions = false;       ///< computes any rectangle of rows and units, so that it may be part of a group
  bool keeps_rows = false;    ///< has Launch::row_scratch_bytes and, for hosts, TileKernel::rows_prologue
  uint32_t unit_granule = 1;  ///< units that it does best in multiples of
};

}  // namespace refrain::backend
