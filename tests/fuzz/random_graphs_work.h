// Random recordings for several queues over memory with aliases, and an oracle that computes each command as
// it is recorded. What must hold of them is in random_graphs.h.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "refrain/device/device.h"
#include "tests/fuzz/random_graphs_rows.h"

namespace refrain::null_tests {

/// One or several recordings that follow each other, each for a queue.
class RandomWork : public RandomRows {
 public:
  struct Part {
    graph::ComputeGraph graph;
    uint32_t queue = 0;
  };

  RandomWork(World& world, uint32_t seed, uint32_t commands) : RandomRows(world, seed) {
    narrow_ = below(3) == 0;
    rows_of_32_ = below(8) == 0 ? 0 : 8 + below(24);  // with none of them, nothing can be fused
    const uint32_t count = below(3) == 0 ? 2 + below(3) : 1;
    for (uint32_t p = 0; p < count; ++p) {
      CommandEncoder encoder = world.device->encoder();
      encoder_ = &encoder;
      values_.clear();
      forget_rows();
      for (uint32_t i = 0; i < commands / count; ++i) record();
      parts.push_back({encoder.finish(), below(World::kQueues)});
    }
  }

  void reset() const {
    for (size_t b = 0; b < initial_.size(); ++b) std::ranges::copy(initial_[b], world_.block(b).begin());
    for (size_t i = 0; i < world_.counts.size(); ++i)
      world_.counts[i].span<uint32_t>()[0] = World::kLiveRows[i];
    for (const Buffer& arena : world_.arenas) std::memset(arena.host_span().data(), 0xEE, 4096);
  }
  bool as_recorded() const {
    for (size_t b = 0; b < memory_.size(); ++b) {
      if (!std::ranges::equal(memory_[b], world_.block(b))) return false;
    }
    return world_.counts[1].span<uint32_t>()[0] == live_[1];
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
  static Place place(Value& value) {
    return {{}, value.temp, value.values.data(), static_cast<uint32_t>(value.values.size()), &value.written};
  }
  Place anywhere(bool output) { return below(5) < 2 ? in_buffer() : in_temp(output && below(4) != 0); }

  void record() {
    const uint32_t kind = below(32);
    if (kind == 0) return encoder_->barrier();
    if (below(32) < rows_of_32_) return record_rows();
    MixConstants c;
    c.salt = below(1 << 20);
    try {
      if (kind < 8) {
        const Place a = anywhere(false), target = anywhere(false);
        c = {c.salt, a.elements, 0, target.elements};
        dispatch(*encoder_, kUpdate, std::array{a.operand(), target.operand()}, c);
        compute(run_update, {a.values, target.values}, c, 1);
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

  static void compute(void (*run)(const TileArgs&, uint32_t, uint32_t), std::array<void*, 3> args,
                      const MixConstants& c, uint32_t live_rows) {
    TileArgs tile;
    tile.args = args.data();
    tile.constants = reinterpret_cast<const std::byte*>(&c);
    tile.live_rows = live_rows;
    run(tile, 0, live_rows);
  }

  bool narrow_ = false;
  uint32_t rows_of_32_ = 0;
  std::vector<std::unique_ptr<Value>> values_;
};

}  // namespace refrain::null_tests
