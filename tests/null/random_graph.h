// Random recordings over the ops of test_ops.h, with an oracle that computes each command as it is recorded,
// on memory of its own: what every plan of the recording must leave in the buffers.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/null/null_backend.h"
#include "refrain/device/device.h"
#include "refrain/graph/check.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/lower.h"
#include "refrain/graph/make_plan.h"
#include "refrain/graph/memory.h"
#include "refrain/graph/rewrite.h"
#include "tests/null/order_oracle.h"
#include "tests/null/test_ops.h"

namespace refrain::null_tests {

inline Device null_device(uint32_t compute_units = 1) {
  return Device(backend::make_null(kKernels, 0, compute_units), {}, {});
}

class RandomGraph {
 public:
  RandomGraph(Device device, uint32_t seed, uint32_t commands)
      : device_(std::move(device)), rng_(seed), encoder_(device_.encoder()) {
    for (size_t i = 0; i < kBuffers; ++i) {
      buffers_.push_back(device_.buffer(DType::u32, {kElements}));
      memory_.emplace_back(kElements);
      for (uint32_t& value : memory_.back()) value = rng_();
      initial_.push_back(memory_.back());
    }
    status_ = device_.buffer(DType::u32, {1});
    count_ = device_.buffer(DType::u32, {1});
    count_.span<uint32_t>()[0] = kLiveRows;
    for (uint32_t i = 0; i < commands; ++i) record();
  }

  ComputeGraph finish() { return encoder_.finish(); }
  uint64_t refused() const { return refused_; }

  /// Fills the buffers as they were before the recording.
  void reset() {
    for (size_t i = 0; i < kBuffers; ++i)
      std::ranges::copy(initial_[i], buffers_[i].span<uint32_t>().begin());
    status_.span<uint32_t>()[0] = 0;
  }
  /// True when the buffers hold what the recorded order leaves in them.
  bool as_recorded() const {
    for (size_t i = 0; i < kBuffers; ++i) {
      if (!std::ranges::equal(memory_[i], buffers_[i].span<uint32_t>())) return false;
    }
    return status_.span<uint32_t>()[0] == noted_;
  }

 private:
  static constexpr size_t kBuffers = 3;
  static constexpr int64_t kElements = 64, kRowElements = 4, kRowCapacity = 8;
  static constexpr uint32_t kLiveRows = 5;

  /// Something to bind, and where the oracle keeps it.
  struct Place {
    Buffer buffer;
    Temp temp;
    uint32_t* values = nullptr;
    uint32_t elements = 0;
    bool* written = nullptr;  // of a temp
    Operand operand() const { return buffer ? Operand(buffer) : Operand(temp); }
  };
  struct Value {
    Temp temp;
    std::vector<uint32_t> values;
    bool written = false;
  };

  uint32_t below(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }

  Place in_buffer() {
    const uint32_t which = below(kBuffers);
    const int64_t first = below(kElements), count = 1 + below(static_cast<uint32_t>(kElements - first));
    return {buffers_[which].slice(first, count),
            {},
            memory_[which].data() + first,
            static_cast<uint32_t>(count),
            nullptr};
  }
  Place in_temp(std::vector<std::unique_ptr<Value>>& values, bool fresh) {
    if (fresh || values.empty()) {
      auto value = std::make_unique<Value>();
      if (&values == &row_values_) {
        value->temp = encoder_.temp(DType::u32, {kRowCapacity, kRowElements}, count_);
      } else {
        value->temp = encoder_.temp(DType::u32, {1 + below(80)});
      }
      value->values.resize(static_cast<size_t>(value->temp.shape().elements()));
      values.push_back(std::move(value));
      return place(*values.back());
    }
    // Mostly recent ones, so that many values end their life.
    const auto back =
        std::min(below(static_cast<uint32_t>(values.size())), below(static_cast<uint32_t>(values.size())));
    return place(*values[values.size() - 1 - back]);
  }
  static Place place(Value& value) {
    return {{}, value.temp, value.values.data(), static_cast<uint32_t>(value.values.size()), &value.written};
  }
  Place anywhere(bool output) {
    return below(5) < 2 ? in_buffer() : in_temp(values_, output && below(4) != 0);
  }

  void record() {
    const uint32_t kind = below(32);
    if (kind == 0) return encoder_.barrier();
    MixConstants c;
    c.salt = below(1 << 20);
    try {
      if (kind < 8) {
        const Place a = anywhere(false), target = anywhere(false);
        c = {c.salt, a.elements, 0, target.elements};
        dispatch(encoder_, kUpdate, std::array{a.operand(), target.operand()}, c);
        compute(kUpdate, {a.values, target.values}, c, 1);
      } else if (kind < 12) {
        const Place a = in_temp(row_values_, row_values_.empty());
        if (!*a.written) return start_rows(a);
        const Place output = below(3) == 0 ? a : in_temp(row_values_, below(2) == 0);
        c.a = kRowElements;
        dispatch(encoder_, kRows, std::array{a.operand(), output.operand()}, c);
        compute(kRows, {a.values, output.values}, c, kLiveRows);
        *output.written = true;
      } else if (kind < 15) {
        // Bits of a value, so that what is told of it depends on when that is read.
        const Place a = anywhere(false), output = below(6) == 0 ? a : anywhere(true);
        c = {c.salt, a.elements, 0, output.elements};
        dispatch(encoder_, kNote, std::array{a.operand(), Operand(status_), output.operand()}, c);
        compute(kNote, {a.values, &noted_, output.values}, c, 1);
        if (output.written != nullptr) *output.written = true;
      } else {
        const Place a = anywhere(false), b = anywhere(false), output = below(6) == 0 ? a : anywhere(true);
        const bool both = below(3) != 0;
        c = {c.salt, a.elements, b.elements, output.elements};
        dispatch(encoder_, kMix, std::array{a.operand(), both ? b.operand() : Operand(), output.operand()},
                 c);
        compute(kMix, {a.values, both ? b.values : nullptr, output.values}, c, 1);
        if (output.written != nullptr) *output.written = true;
      }
    } catch (const InvalidArgument&) {
      ++refused_;  // overlapping outputs, values that nothing has written: nothing was recorded
    }
  }

  /// The first value of a chain of rows comes from a buffer with the same live count.
  void start_rows(const Place& output) {
    MixConstants c{below(1 << 20), kRowElements, 0, 0};
    const uint32_t which = below(kBuffers);
    const Buffer rows = buffers_[which].view(DType::u32, {kRowCapacity, kRowElements}).with_live_rows(count_);
    dispatch(encoder_, kRows, std::array{Operand(rows), output.operand()}, c);
    compute(kRows, {memory_[which].data(), output.values}, c, kLiveRows);
    *output.written = true;
  }

  static void compute(const OpSchema& op, std::array<void*, 3> args, const MixConstants& c,
                      uint32_t live_rows) {
    TileArgs tile;
    tile.args = args.data();
    tile.constants = reinterpret_cast<const std::byte*>(&c);
    tile.live_rows = live_rows;
    (&op == &kMix      ? run_mix
     : &op == &kNote   ? run_note
     : &op == &kUpdate ? run_update
                       : run_rows)(tile, 0, live_rows);
  }

  Device device_;
  std::mt19937 rng_;
  CommandEncoder encoder_;
  std::vector<Buffer> buffers_;
  std::vector<std::vector<uint32_t>> memory_, initial_;
  Buffer status_, count_;
  uint32_t noted_ = 0;
  std::vector<std::unique_ptr<Value>> values_, row_values_;
  uint64_t refused_ = 0;
};

/// What is wrong with the memory plan of a graph; empty when nothing is.
inline std::string memory_faults(const ComputeGraph& recorded, const backend::DeviceInfo& info, bool reuse,
                                 const backend::KernelTables& tables = kKernels) {
  ComputeGraph graph = recorded;
  graph::expand(graph, graph::Mode::exact);
  graph::rewrite(graph, tables, info, 0);
  const graph::LoweredGraph lowered = graph::lower(graph, tables.kernels, info);
  graph::AccessList list;
  std::vector<std::vector<uint32_t>> users(lowered.temp_bytes.size());
  for (const backend::PlanCommand& command : lowered.commands) {
    graph::AccessList::Entry entry{{static_cast<uint32_t>(list.ranges.size()), command.args.count},
                                   command.kind == backend::CommandKind::fence};
    for (uint32_t a = command.args.first; a < command.args.first + command.args.count; ++a) {
      const graph::LoweredArgument& arg = lowered.args[a];
      const bool temp = arg.temp != graph::kNone;
      if (temp) users[arg.temp].push_back(static_cast<uint32_t>(list.commands.size()));
      list.ranges.push_back({temp                             ? (uint64_t{1} << 40) + arg.temp
                             : arg.view.allocation == nullptr ? 0
                                                              : arg.view.allocation->id,
                             arg.view.offset_bytes, arg.view.offset_bytes + arg.view.bytes,
                             effect(arg.access)});
    }
    list.commands.push_back(entry);
  }
  const Relation before = closure(list);
  const graph::MemoryPlan plan = graph::plan_memory(lowered, graph::derive_order(list), reuse);
  size_t sum = 0, end = 0;
  for (uint32_t t = 0; t < users.size(); ++t) {
    if (users[t].empty()) continue;
    const size_t begin = plan.offsets_bytes[t], bytes = lowered.temp_bytes[t];
    if (begin % 64 != 0) return "a temp is misaligned";
    sum += (bytes + 63) / 64 * 64;
    end = std::max(end, begin + bytes);
    for (uint32_t o = 0; o < t; ++o) {
      if (users[o].empty()) continue;
      const size_t other = plan.offsets_bytes[o];
      if (other + lowered.temp_bytes[o] <= begin || begin + bytes <= other) continue;
      if (!reuse) return "temps share bytes without leave";
      const auto all = [&](const auto& later, const auto& earlier) {
        return std::ranges::all_of(later, [&](uint32_t l) {
          return std::ranges::all_of(earlier, [&](uint32_t e) { return before[l][e]; });
        });
      };
      if (!all(users[t], users[o]) && !all(users[o], users[t]))
        return "temps that share bytes are not ordered apart";
    }
  }
  if (plan.arena_bytes > sum) return "the arena is larger than all temps together";
  if (end > plan.arena_bytes) return "a temp lies outside of the arena";
  return {};
}

/// Everything that must hold of a random recording; empty when it does.
inline std::string graph_faults(uint32_t seed, uint32_t commands,
                                const backend::KernelTables& tables = kKernels) {
  std::mt19937 rng(seed);
  Device device = null_device(1 + seed % 3);
  RandomGraph random(device, seed, commands);
  const ComputeGraph graph = random.finish();
  graph::PlanOptions shared, separate;
  shared.check = separate.check = true;
  separate.reuse_memory = false;
  const auto [plan, report] = graph::make_plan(ComputeGraph(graph), tables, device.info(), shared);
  const auto [apart, apart_report] = graph::make_plan(ComputeGraph(graph), tables, device.info(), separate);
  if (plan.deps != apart.deps) return "sharing memory changed the edges";
  if (report.arena_bytes > apart_report.arena_bytes) return "sharing memory made the arena larger";
  if (!graph::check_order(plan).empty()) return "the checker objects";
  const Relation before = stored_order(plan);
  if (before != closure(accesses(plan))) return "the stored order is not the closure of the conflicts";
  for (const bool reuse : {true, false}) {
    if (const std::string fault = memory_faults(graph, device.info(), reuse, tables); !fault.empty())
      return fault;
  }
  const auto run = [&](const backend::PlanData& of, std::span<const uint32_t> order) {
    std::vector<std::byte> memory(of.arena_bytes + 64, std::byte{0xEE});
    auto address = reinterpret_cast<uintptr_t>(memory.data());
    random.reset();
    run_plan(of, order, memory.data() + (64 - address % 64) % 64);
    return random.as_recorded();
  };
  std::vector<uint32_t> recorded(plan.commands.size());
  for (uint32_t i = 0; i < recorded.size(); ++i) recorded[i] = i;
  if (!run(apart, recorded)) return "separate memory, recorded order: other bits";
  if (!run(plan, recorded)) return "shared memory, recorded order: other bits";
  for (const Hostility hostility :
       {Hostility::random, Hostility::latest_first, Hostility::longest_path_last}) {
    const std::vector<uint32_t> order = hostile_order(plan, hostility, rng);
    if (order.size() != plan.commands.size()) return "the edges have a cycle";
    if (!run(plan, order))
      return "shared memory, hostile order " + std::to_string(static_cast<int>(hostility)) + ": other bits";
  }
  return {};
}

}  // namespace refrain::null_tests
