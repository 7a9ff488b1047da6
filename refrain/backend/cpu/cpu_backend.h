// The CPU backend: a team of threads that walks prepared commands. Not the place of kernels, which come as a
// table.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain::backend {

/// CpuOptions::spin: a waiting worker yields, but never sleeps.
inline constexpr std::chrono::nanoseconds kSpinForever = std::chrono::nanoseconds::max();

struct CpuOptions {
  uint32_t threads = 0;  ///< workers; 0: one a core of the affinity mask, at most the cgroup quota
  /// How long a waiting worker spins before it sleeps. Taken as 0 when there are more workers than CPUs, or
  /// than the cgroup quota lets run at the same time.
  std::chrono::nanoseconds spin = std::chrono::microseconds(20);
  uint64_t features = ~uint64_t{0};  ///< features to use of those that the machine has (features.h)
  size_t memory_limit_bytes = 0;     ///< refuse allocations past this sum; 0: what the machine offers
  /// Of queue 0, 1 and so on, 0 past the end: of the submissions that can run, one of the highest priority is
  /// started, however long others have waited; queues of equal priority take turns.
  std::vector<int32_t> queue_priorities = {};
  std::string system_root;  ///< where proc/ and sys/ are read, with no slash at the end
};

/// A backend whose kernels are TileKernels (Kernel::entry). What `kernels` names outlives it.
/// Throws InvalidArgument for more than 1024 threads or more priorities than queues, DeviceError when threads cannot be started.
std::unique_ptr<Backend> make_cpu(const CpuOptions& options, const KernelTables& kernels);

}  // namespace refrain::backend
