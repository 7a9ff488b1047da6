// Random recordings for several queues over memory with aliases, and an oracle that computes each command as
// it is recorded. What must hold of them is in random_graphs.h.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "refrain/device/cpu/cpu_device.h"
#include "refrain/stream/device.h"
#include "tests/null/test_ops.h"

namespace refrain::null_tests {

/// What a campaign has done.
struct Tally {
  uint64_t graphs = 0, plans = 0, commands = 0, fences = 0, conflicts = 0, edges = 0;
  uint64_t levels = 0, longest_chains = 0;  ///< equal when every level is needed
  uint64_t groups_recorded = 0, groups_greedy = 0, groups_levels = 0, moved = 0;
  uint64_t edges_removed = 0, executions = 0, submissions = 0, waits = 0;
};

/// A CPU device and the memory that all recordings crowd: one buffer of the device, and one imported block
/// with three overlapping buffers on it.
class World {
 public:
  static constexpr uint32_t kWorkers = 2, kQueues = 3, kElements = 48, kRowElements = 4, kRowCapacity = 8,
                            kLiveRows = 5;
  static constexpr size_t kArenaBytes = 1 << 16;

  /// A buffer and where its elements are in memory_of(block).
  struct Alias {
    Buffer buffer;
    size_t block = 0, first = 0;
    uint32_t elements = 0;
  };

  World() {
    device::CpuOptions options;
    options.threads = kWorkers;
    backend = device::make_cpu(options, kKernels);
    device = std::make_unique<Device>(backend, std::span<const device::WeightLayout>(), DeviceOptions());
    const Buffer own = device->buffer(DType::u32, {kElements});
    struct alignas(64) Block {
      uint32_t elements[kElements];
    };
    const auto imported = std::make_shared<Block>();
    const device::Allocation* allocation = backend->allocate({sizeof(Block), imported->elements, {}});
    const auto handle = std::make_shared<AllocationHandle>(backend, allocation, imported);
    const Buffer all(handle, 0, DType::u32, {kElements}), low(handle, 0, DType::u32, {32}),
        high(handle, 16 * sizeof(uint32_t), DType::u32, {32});
    aliases = {{own, 0, 0, kElements}, {all, 1, 0, kElements}, {low, 1, 0, 32}, {high, 1, 16, 32}};
    count = device->buffer(DType::u32, {1});
    count.span<uint32_t>()[0] = kLiveRows;
    for (Buffer& arena : arenas) arena = device->buffer(DType::u32, {kArenaBytes / sizeof(uint32_t)});
  }

  std::span<uint32_t> block(size_t index) const { return aliases[index].buffer.span<uint32_t>(); }

  std::shared_ptr<device::Backend> backend;
  std::unique_ptr<Device> device;
  std::vector<Alias> aliases;
  Buffer count;
  std::array<Buffer, kQueues> arenas;
  Tally tally;
};

/// One or several recordings that follow each other, each for a queue.
class RandomWork {
 public:
  struct Part {
    graph::ComputeGraph graph;
    uint32_t queue = 0;
  };

  RandomWork(World& world, uint32_t seed, uint32_t commands) : world_(world), rng_(seed) {
    for (size_t b = 0; b < initial_.size(); ++b) {
      initial_[b].resize(World::kElements);
      for (uint32_t& value : initial_[b]) value = rng_();
      memory_[b] = initial_[b];
    }
    narrow_ = below(3) == 0;
    const uint32_t count = below(3) == 0 ? 2 + below(3) : 1;
    for (uint32_t p = 0; p < count; ++p) {
      CommandEncoder encoder = world.device->encoder();
      encoder_ = &encoder;
      values_.clear();
      rows_.clear();
      for (uint32_t i = 0; i < commands / count; ++i) record();
      parts.push_back({encoder.finish(), below(World::kQueues)});
    }
  }

  void reset() const {
    for (size_t b = 0; b < initial_.size(); ++b) std::ranges::copy(initial_[b], world_.block(b).begin());
    for (const Buffer& arena : world_.arenas) std::memset(arena.host_span().data(), 0xEE, 4096);
  }
  bool as_recorded() const {
    for (size_t b = 0; b < memory_.size(); ++b) {
      if (!std::ranges::equal(memory_[b], world_.block(b))) return false;
    }
    return true;
  }

  std::vector<Part> parts;

 private:
  struct Value {
    Temp temp;
    std::vector<uint32_t> values;
    bool written = false;
  };
  struct Place {
    Buffer buffer;
    Temp temp;
    uint32_t* values = nullptr;
    uint32_t elements = 0;
    bool* written = nullptr;  // of a temp
    Operand operand() const { return buffer ? Operand(buffer) : Operand(temp); }
  };

  uint32_t below(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }

  Place in_buffer() {
    const World::Alias& alias = world_.aliases[below(static_cast<uint32_t>(world_.aliases.size()))];
    const uint32_t first = below(alias.elements), most = alias.elements - first;
    const uint32_t elements = 1 + below(narrow_ ? std::min(most, 6u) : most);
    return {alias.buffer.slice(first, elements),
            {},
            memory_[alias.block].data() + alias.first + first,
            elements,
            nullptr};
  }
  Place in_temp(bool fresh) {
    if (fresh || values_.empty()) {
      auto value = std::make_unique<Value>();
      value->temp = encoder_->temp(DType::u32, {1 + below(40)});
      value->values.resize(static_cast<size_t>(value->temp.shape().elements()));
      values_.push_back(std::move(value));
      return place(*values_.back());
    }
    const auto size = static_cast<uint32_t>(values_.size());
    return place(*values_[size - 1 - std::min(below(size), below(size))]);
  }
  Place in_rows(bool fresh) {
    if (fresh || rows_.empty()) {
      auto value = std::make_unique<Value>();
      value->temp = encoder_->temp(DType::u32, {World::kRowCapacity, World::kRowElements}, world_.count);
      value->values.resize(World::kRowCapacity * World::kRowElements);
      rows_.push_back(std::move(value));
      return place(*rows_.back());
    }
    return place(*rows_[below(static_cast<uint32_t>(rows_.size()))]);
  }
  static Place place(Value& value) {
    return {{}, value.temp, value.values.data(), static_cast<uint32_t>(value.values.size()), &value.written};
  }
  Place anywhere(bool output) { return below(5) < 2 ? in_buffer() : in_temp(output && below(4) != 0); }

  void record() {
    const uint32_t kind = below(32);
    if (kind == 0) return encoder_->barrier();
    MixConstants c;
    c.salt = below(1 << 20);
    try {
      if (kind < 8) {
        const Place a = anywhere(false), target = anywhere(false);
        c = {c.salt, a.elements, 0, target.elements};
        dispatch(*encoder_, kUpdate, std::array{a.operand(), target.operand()}, c);
        compute(run_update, {a.values, target.values}, c, 1);
      } else if (kind < 12) {
        const Place a = in_rows(false);
        if (!*a.written) return start_rows(a);
        const Place output = below(3) == 0 ? a : in_rows(below(2) == 0);
        c.a = World::kRowElements;
        dispatch(*encoder_, kRows, std::array{a.operand(), output.operand()}, c);
        compute(run_rows, {a.values, output.values}, c, World::kLiveRows);
        *output.written = true;
      } else {
        const Place a = anywhere(false), b = anywhere(false), output = below(5) == 0 ? a : anywhere(true);
        const bool both = below(3) != 0;
        c = {c.salt, a.elements, b.elements, output.elements};
        dispatch(*encoder_, kMix, std::array{a.operand(), both ? b.operand() : Operand(), output.operand()},
                 c);
        compute(run_mix, {a.values, both ? b.values : nullptr, output.values}, c, 1);
        if (output.written != nullptr) *output.written = true;
      }
    } catch (const InvalidArgument&) {
      // Overlapping outputs, values that nothing has written: nothing was recorded.
    }
  }

  void start_rows(const Place& output) {
    const MixConstants c{below(1 << 20), World::kRowElements, 0, 0};
    const Buffer rows =
        world_.aliases[below(2)].buffer.view(DType::u32, {World::kRowCapacity, World::kRowElements}, 0);
    const size_t block = rows.memory() == world_.aliases[0].buffer.memory() ? 0 : 1;
    dispatch(*encoder_, kRows, std::array{Operand(rows.with_live_rows(world_.count)), output.operand()}, c);
    compute(run_rows, {memory_[block].data(), output.values}, c, World::kLiveRows);
    *output.written = true;
  }

  static void compute(void (*run)(const TileArgs&, uint32_t, uint32_t), std::array<void*, 3> args,
                      const MixConstants& c, uint32_t live_rows) {
    TileArgs tile;
    tile.args = args.data();
    tile.constants = reinterpret_cast<const std::byte*>(&c);
    tile.live_rows = live_rows;
    run(tile, 0, live_rows);
  }

  World& world_;
  std::mt19937 rng_;
  CommandEncoder* encoder_ = nullptr;
  bool narrow_ = false;
  std::array<std::vector<uint32_t>, 2> memory_, initial_;
  std::vector<std::unique_ptr<Value>> values_, rows_;
};

}  // namespace refrain::null_tests
