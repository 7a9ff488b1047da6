// What the library and the CUDA plugin know of each other: one C symbol that leads to one table. The plugin is a shared
// library of its own, so that the library runs where there is no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "refrain/backend/backend.h"

namespace refrain::backend::cuda {

struct CudaOptions {
  uint32_t ordinal = 0;  ///< of the GPU, as CUDA counts those that it sees
  /// Of queue 0, 1 and so on, 0 past the end: a hint, cut to what the GPU offers.
  std::span<const int32_t> queue_priorities = {};
  /// Each kernel begins when those before it have ended: no programmatic edges. For tests and measurements.
  bool full_edges = false;
};

/// A kernel of the plugin; the library looks up the op by name.
struct PluginKernel {
  std::string_view op;
  Kernel kernel;  ///< kernel.op is null
};

struct Plugin {
  uint64_t abi = 0;  ///< first, and read before anything else: plugin_abi() where the plugin was built
  std::span<const PluginKernel> kernels;
  std::span<const GroupKernel> group_kernels;
  /// What its kernels read, best first. One with nothing but a name is the library's of that name.
  std::span<const WeightLayout> layouts;
  /// `kernels` and what they point to outlive the backend. Throws DeviceError, saying what is missing.
  std::unique_ptr<Backend> (*open)(const CudaOptions& options, const KernelTables& kernels) = nullptr;
};

/// `extern "C" const Plugin* refrain_cuda_plugin();`
inline constexpr const char* kPluginSymbol = "refrain_cuda_plugin";
using PluginFunction = const Plugin* (*)();

/// A number that two builds share when they agree on the contract: counted up when its meaning changes, mixed with the
/// sizes of what passes through it.
constexpr uint64_t plugin_abi() {
  constexpr uint64_t kContract = 2;
  uint64_t hash = 14695981039346656037u;
  for (const uint64_t part : {kContract,
                              uint64_t{sizeof(Plugin)},
                              uint64_t{sizeof(CudaOptions)},
                              uint64_t{sizeof(DeviceInfo)},
                              uint64_t{sizeof(Kernel)},
                              uint64_t{sizeof(GroupKernel)},
                              uint64_t{sizeof(KernelTables)},
                              uint64_t{sizeof(OpSchema)},
                              uint64_t{sizeof(ArgumentSpec)},
                              uint64_t{sizeof(OpCall)},
                              uint64_t{sizeof(ArgumentInfo)},
                              uint64_t{sizeof(WeightInfo)},
                              uint64_t{sizeof(WeightLayout)},
                              uint64_t{sizeof(Launch)},
                              uint64_t{sizeof(PlanData)},
                              uint64_t{sizeof(PlanCommand)},
                              uint64_t{sizeof(Argument)},
                              uint64_t{sizeof(ExecutableOptions)},
                              uint64_t{sizeof(Submission)},
                              uint64_t{sizeof(WeightFormat)},
                              uint64_t{sizeof(Point)},
                              uint64_t{sizeof(TickSpan)}}) {
    hash = (hash ^ part) * 1099511628211u;
  }
  return hash;
}

}  // namespace refrain::backend::cuda
