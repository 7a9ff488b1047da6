// What random recordings work on: a CPU device, memory with aliases, and what is remembered of it by the oracle.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/device/device.h"
#include "tests/null/fusible_ops.h"

namespace refrain::null_tests {

/// What a campaign has done.
struct Tally {
  uint64_t graphs = 0, plans = 0, commands = 0, fences = 0, conflicts = 0, edges = 0;
  uint64_t levels = 0, longest_chains = 0;  ///< equal when every level is needed
  uint64_t groups_recorded = 0, groups_levels = 0, moved = 0;
  uint64_t edges_removed = 0, executions = 0, submissions = 0, waits = 0;
  uint64_t recordings = 0, recordings_with_fusions = 0, fusions = 0, members = 0, prologues = 0;
  uint64_t shared_tiles = 0, misses = 0;  ///< components of several members; commands left, with a reason
};

/// A CPU device and the memory that all recordings crowd: one buffer of the device, and one imported block
/// with three overlapping buffers on it.
class World {
 public:
  static constexpr uint32_t kWorkers = 2, kQueues = 3, kElements = 96, kRows = 8;
  static constexpr std::array<uint32_t, 2> kLiveRows{5, 3};
  static constexpr size_t kArenaBytes = 1 << 16;

  /// A buffer and where its elements are in memory_of(block).
  struct Alias {
    Buffer buffer;
    size_t block = 0, first = 0;
    uint32_t elements = 0;
  };

  World() {
    backend::CpuOptions options;
    options.threads = kWorkers;
    backend = backend::make_cpu(options, fusible_kernels());
    device = std::make_unique<Device>(backend, std::span<const backend::WeightLayout>(), DeviceOptions());
    const Buffer own = device->buffer(DType::u32, {kElements});
    struct alignas(64) Block {
      uint32_t elements[kElements];
    };
    const auto imported = std::make_shared<Block>();
    const Buffer all = device->import_memory(imported->elements, DType::u32, {kElements}, imported);
    const Buffer low = all.slice(0, 64), high = all.slice(32, 64);
    aliases = {{own, 0, 0, kElements}, {all, 1, 0, kElements}, {low, 1, 0, 64}, {high, 1, 32, 64}};
    for (size_t i = 0; i < counts.size(); ++i) {
      counts[i] = device->buffer(DType::u32, {1});
      counts[i].span<uint32_t>()[0] = kLiveRows[i];
    }
    for (Buffer& arena : arenas) arena = device->buffer(DType::u32, {kArenaBytes / sizeof(uint32_t)});
  }

  std::span<uint32_t> block(size_t index) const { return aliases[index].buffer.span<uint32_t>(); }

  std::shared_ptr<backend::Backend> backend;
  std::unique_ptr<Device> device;
  std::vector<Alias> aliases;
  std::array<Buffer, 2> counts;  ///< of live rows; commands write the second
  std::array<Buffer, kQueues> arenas;
  Tally tally;
};

/// What the parts of a random recording share.
class RandomState {
 protected:
  RandomState(World& world, uint32_t seed) : world_(world), rng_(seed) {
    for (size_t b = 0; b < initial_.size(); ++b) {
      initial_[b].resize(World::kElements);
      for (uint32_t& value : initial_[b]) value = rng_();
      memory_[b] = initial_[b];
    }
  }

  uint32_t below(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }

  World& world_;
  std::mt19937 rng_;
  CommandEncoder* encoder_ = nullptr;
  std::array<std::vector<uint32_t>, 2> memory_, initial_;  ///< of blocks; as the commands so far leave it
  std::array<uint32_t, 2> live_ = World::kLiveRows;
};

}  // namespace refrain::null_tests
