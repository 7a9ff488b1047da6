// The test kernels for CUDA: a plugin of the same backend, which tests/conformance opens in place of the ops' own. A thread
// computes a tile, and a tile is a row.
#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/kernel_tables.h"
#include "refrain/core/checked.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

using namespace cuda;

constexpr uint32_t kMaxArgs = 3;
constexpr unsigned long long kPatienceNs = 5'000'000'000;

struct TestParameters {
  CommandState state;
  Launch launch;
  Constants constants;
  void* args[kMaxArgs];

  __device__ uint32_t* arg(uint32_t index) const { return static_cast<uint32_t*>(args[index]); }
  __device__ uint32_t tiles(uint32_t rows) const {
    return ceil_div(rows, launch.rows_per_block) * launch.tiles_per_block;
  }
};

__device__ void rest(const Constants& constants, uint32_t tile) {
  uint32_t delay = constants.delay_us;
  if (delay == 0) return;
  if (constants.seed != 0) {
    uint32_t x = constants.seed * 2654435761u + tile * 40503u + 12345u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    delay = x % delay;
  }
  const unsigned long long begin = global_time_ns();
  while (global_time_ns() - begin < delay * 1000ull) __nanosleep(100);
}

struct Fill {
  __device__ static void row(const TestParameters& p, uint32_t r) { p.arg(0)[r] = p.constants.value; }
};
struct Copy {
  __device__ static void row(const TestParameters& p, uint32_t r) { p.arg(1)[r] = p.arg(0)[r]; }
};
struct Add {
  __device__ static void row(const TestParameters& p, uint32_t r) { p.arg(2)[r] = p.arg(0)[r] + p.arg(1)[r]; }
};
struct Increment {
  __device__ static void row(const TestParameters& p, uint32_t r) { p.arg(0)[r] += p.constants.value; }
};
struct Append {
  __device__ static void row(const TestParameters& p, uint32_t) {
    uint32_t* const log = p.arg(1);
    log[1 + log[0]++] = p.arg(0)[0];
  }
};
struct Thread {
  __device__ static void row(const TestParameters& p, uint32_t r) {
    static_cast<uint64_t*>(p.args[0])[r] = 1 + blockIdx.x;
  }
};
struct Meet {
  __device__ static void row(const TestParameters& p, uint32_t r) {
    auto* const word = static_cast<volatile uint32_t*>(p.arg(0));
    atomicOr(p.arg(0), 1u << p.constants.value);
    const unsigned long long begin = global_time_ns();
    while (*word != 3 && global_time_ns() - begin < kPatienceNs) __nanosleep(100);
    p.arg(1)[r] = *word == 3 ? 1 : 0;
  }
};
/// Loses the device.
struct Throw {
  __device__ static void row(const TestParameters& p, uint32_t r) {
    if (r == p.constants.value) __trap();
  }
};

template <class Op>
__global__ void tiles_kernel(const __grid_constant__ TestParameters p) {
  const Running run(p.state);
  const uint32_t tiles = p.tiles(run.rows);
  for (uint32_t tile = blockIdx.x * blockDim.x + threadIdx.x; tile < tiles; tile += gridDim.x * blockDim.x) {
    rest(p.constants, tile);
    Op::row(p, tile);
  }
}

/// Of each walker one thread works.
__global__ void record_kernel(const __grid_constant__ TestParameters p) {
  const Running run(p.state);
  if (threadIdx.x != 0) return;
  auto& record = reinterpret_cast<WorkerRecord*>(p.state.scratch)[blockIdx.x];
  const uint32_t tiles = p.tiles(run.rows);
  if (blockIdx.x >= tiles) return;
  record.thread = 1 + blockIdx.x;
  ++record.prologues;
  for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    rest(p.constants, tile);
    if (record.thread != 1 + blockIdx.x) ++record.broken;
    ++record.tiles;
    ++p.arg(0)[tile];
  }
}

void bind(const BoundCommand& command, std::byte* parameters) {
  TestParameters bound{command.state, command.launch, command.members[0].constants_as<Constants>(), {}};
  for (size_t i = 0; i < command.members[0].arg_count; ++i) bound.args[i] = command.members[0].args[i];
  std::memcpy(parameters, &bound, sizeof(bound));
}

uint64_t tiles_of(const Launch& launch) {
  return uint64_t{ceil_div(launch.rows, launch.rows_per_block)} * launch.tiles_per_block;
}

GridShape tiles_shape(const BoundCommand& command) {
  return {.blocks = std::min<uint64_t>(ceil_div<uint64_t>(tiles_of(command.launch), kWarp), 1024),
          .threads = kWarp};
}

GridShape record_shape(const BoundCommand& command) {
  return {.blocks = std::min<uint64_t>(tiles_of(command.launch), command.state.walkers), .threads = kWarp};
}

PluginKernel kernel(std::string_view op, std::string_view name, const KernelEntry& entry) {
  PluginKernel row;
  row.op = op;
  row.kernel.name = name;
  row.kernel.numerics = "test";
  row.kernel.entry = &entry;
  return row;
}

template <class Op>
PluginKernel kernel(std::string_view op, std::string_view name, bool waits = true) {
  static const KernelEntry kEntry{.function = reinterpret_cast<const void*>(tiles_kernel<Op>),
                                  .parameter_bytes = sizeof(TestParameters),
                                  .bind = bind,
                                  .shape = tiles_shape,
                                  .waits_everywhere = true};
  static const KernelEntry kFullEntry{.function = reinterpret_cast<const void*>(tiles_kernel<Op>),
                                      .parameter_bytes = sizeof(TestParameters),
                                      .bind = bind,
                                      .shape = tiles_shape,
                                      .waits_everywhere = false};
  return kernel(op, name, waits ? kEntry : kFullEntry);
}

}  // namespace
}  // namespace refrain::backend::testing

namespace refrain::backend::cuda {

std::span<const PluginKernel> plugin_kernels() {
  using namespace testing;
  static const KernelEntry kRecordEntry{.function = reinterpret_cast<const void*>(record_kernel),
                                        .parameter_bytes = sizeof(TestParameters),
                                        .bind = bind,
                                        .shape = record_shape,
                                        .waits_everywhere = true};
  // One of them has full edges alone.
  static const PluginKernel kTable[] = {
      kernel<Fill>("fill", "fill_test"),
      kernel<Copy>("copy", "copy_test"),
      kernel<Add>("add", "add_test", false),
      kernel<Increment>("increment", "increment_test"),
      kernel<Append>("append", "append_test"),
      kernel<Thread>("thread", "thread_test"),
      kernel("record", "record_test", kRecordEntry),
      kernel<Copy>("prefetched", "prefetched_test"),
      kernel<Meet>("meet", "meet_test"),
      kernel<Throw>("throw", "throw_test"),
  };
  return kTable;
}

std::span<const GroupKernel> plugin_group_kernels() { return {}; }
std::span<const WeightLayout> plugin_layouts() { return {}; }

}  // namespace refrain::backend::cuda
