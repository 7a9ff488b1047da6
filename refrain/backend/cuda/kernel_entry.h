// What Kernel::entry and GroupKernel::entry point to on CUDA: how to launch a kernel, and what it gets. Device code includes
// device.cuh as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "refrain/backend/features.h"
#include "refrain/backend/kernel.h"
#include "refrain/core/error.h"

namespace refrain::backend::cuda {

using backend::kFeatureHopper;

/// When parts of a command happened, on the clock of the GPU: each the greatest of what blocks put there, by their first
/// threads.
struct Stamp {
  unsigned long long not_begin = 0;  ///< the complement of the earliest start
  unsigned long long not_ready = 0;  ///< the complement of the first moment past the wait
  unsigned long long end = 0;
};

/// What every kernel gets, first in its parameters.
struct CommandState {
  const uint32_t* live = nullptr;  ///< the live count; null: all rows
  uint32_t rows = 1;               ///< capacity: a larger count is taken as this
  uint32_t walkers = 1;            ///< parts of `scratch`
  std::byte* scratch = nullptr;
  size_t scratch_bytes = 0;  ///< of each walker
  std::byte* workspace = nullptr;
  uint32_t* tickets = nullptr;  ///< zero when the command begins, and to be left so
  bool live_ahead = false;      ///< the live count may be loaded ahead of the wait
  bool ahead = false;           ///< and so may what KernelEntry::reads_ahead names
  Stamp* stamp = nullptr;       ///< null unless the program keeps timestamps
};

/// One op that a kernel computes: a GroupKernel has several.
struct BoundMember {
  uint32_t place = 0;           ///< as GroupKernel::fits has said; 0 of a Kernel
  void* const* args = nullptr;  ///< device addresses in the order of the schema; null: unbound or elided
  size_t arg_count = 0;
  const std::byte* constants = nullptr;  ///< the op's own struct

  template <class T>
  const T& constants_as() const {
    return *reinterpret_cast<const T*>(constants);
  }
};

/// A command about to be made a launch.
struct BoundCommand {
  std::span<const BoundMember> members;
  CommandState state;
  Launch launch;
};

/// The address of an argument that a kernel reads or writes 16 bytes at a time. Throws DeviceError where it is none.
template <class T>
T* vectors_at(void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
    throw DeviceError(
        "cuda: an argument that begins within 16 bytes: expected one that begins at a multiple");
  return static_cast<T*>(address);
}

struct GridShape {
  uint64_t blocks = 0;  ///< 0: nothing runs
  uint32_t threads = 256;
  size_t shared_bytes = 0;  ///< dynamic
  uint32_t cluster = 1;     ///< blocks of a cluster; divides `blocks`
  bool exclusive_per_sm =
      false;  ///< two such blocks never share an SM, so that a small grid spreads over the GPU
  const void* function = nullptr;  ///< of several that take the entry's parameter; null: the entry's own
};

struct KernelEntry {
  const void* function = nullptr;  ///< a __global__ function of one parameter
  size_t parameter_bytes = 0;      ///< of that parameter
  void (*bind)(const BoundCommand& command, std::byte* parameters) = nullptr;
  GridShape (*shape)(const BoundCommand& command) = nullptr;
  /// What runs ahead of it, with the same parameter and as part of the command: names its function, and waits as this one
  /// does. What it writes, the kernel reads behind its own wait alone. Blocks 0, or null: nothing.
  GridShape (*before)(const BoundCommand& command) = nullptr;
  /// Every thread waits, on every path, before it touches memory that is not sealed: edges may be programmatic.
  bool waits_everywhere = false;
  /// It lets its successors begin only once it has waited itself, so that they find complete what it depends on.
  bool triggers_late = false;
  /// Arguments, by place and index, that it loads ahead of its wait where CommandState::ahead allows that: where all that
  /// writes them within the plan has completed by then, but for what the command writes itself. Null: none.
  bool (*reads_ahead)(uint32_t place, uint32_t argument) = nullptr;
};

/// The parameters of most kernels of one op.
template <class Constants, size_t kArgs>
struct Parameters {
  CommandState state;
  Constants constants;
  void* args[kArgs];

#if defined(__CUDACC__)
  template <class T>
  __device__ T* arg(size_t index) const {
    return static_cast<T*>(args[index]);
  }
#endif
};

template <class Constants, size_t kArgs>
void bind_parameters(const BoundCommand& command, std::byte* parameters) {
  static_assert(std::is_trivially_copyable_v<Parameters<Constants, kArgs>>);
  const BoundMember& member = command.members.front();
  Parameters<Constants, kArgs> bound{command.state, member.constants_as<Constants>(), {}};
  for (size_t i = 0; i < kArgs && i < member.arg_count; ++i) bound.args[i] = member.args[i];
  std::memcpy(parameters, &bound, sizeof(bound));
}

/// The entry of a kernel with such parameters, whose threads wait first of all.
template <class Constants, size_t kArgs>
KernelEntry plain_entry(void (*function)(Parameters<Constants, kArgs>),
                        GridShape (*shape)(const BoundCommand&)) {
  return {.function = reinterpret_cast<const void*>(function),
          .parameter_bytes = sizeof(Parameters<Constants, kArgs>),
          .bind = bind_parameters<Constants, kArgs>,
          .shape = shape,
          .waits_everywhere = true};
}

/// What kConvert makes of the op's own constants, on the host.
template <auto kConvert>
struct Conversion;
template <class Converted, class Constants, Converted (*kConvert)(const Constants&)>
struct Conversion<kConvert> {
  using Result = Converted;

  template <size_t kArgs>
  static void bind(const BoundCommand& command, std::byte* parameters) {
    const auto converted = kConvert(command.members.front().constants_as<Constants>());
    BoundMember member = command.members.front();
    member.constants = reinterpret_cast<const std::byte*>(&converted);
    bind_parameters<Converted, kArgs>({{&member, 1}, command.state, command.launch}, parameters);
  }
};

/// As plain_entry, of a kernel that gets kConvert(constants): what a kernel must not read, as pointers of the host, stays
/// behind.
template <auto kConvert, size_t kArgs>
KernelEntry converted_entry(void (*function)(Parameters<typename Conversion<kConvert>::Result, kArgs>),
                            GridShape (*shape)(const BoundCommand&)) {
  KernelEntry entry = plain_entry(function, shape);
  entry.bind = Conversion<kConvert>::template bind<kArgs>;
  return entry;
}

}  // namespace refrain::backend::cuda
