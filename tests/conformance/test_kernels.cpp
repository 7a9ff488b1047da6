// The test kernels: plain loads and stores, so that ThreadSanitizer sees each conflict.
#include "tests/conformance/test_kernels.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <thread>

#include "refrain/core/checked.h"

namespace refrain::backend::testing {
namespace {

void rest(const TileArgs& args, uint32_t tile) {
  const auto& constants = args.constants_as<Constants>();
  uint32_t delay = constants.delay_us;
  if (delay == 0) return;
  if (constants.seed != 0) {
    uint32_t x = constants.seed * 2654435761u + tile * 40503u + 12345u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    delay = x % delay;
  }
  std::this_thread::sleep_for(std::chrono::microseconds(delay));
}

uint64_t this_thread() { return std::hash<std::thread::id>()(std::this_thread::get_id()); }

// Test kernels compute one row a tile.
template <auto Row>
void tiles(const TileArgs& args, uint32_t begin, uint32_t end) {
  for (uint32_t tile = begin; tile < end; ++tile) {
    rest(args, tile);
    Row(args, tile);
  }
}

void fill(const TileArgs& args, uint32_t row) {
  args.arg<uint32_t>(0)[row] = args.constants_as<Constants>().value;
}
void copy(const TileArgs& args, uint32_t row) { args.arg<uint32_t>(1)[row] = args.arg<uint32_t>(0)[row]; }
void add(const TileArgs& args, uint32_t row) {
  args.arg<uint32_t>(2)[row] = args.arg<uint32_t>(0)[row] + args.arg<uint32_t>(1)[row];
}
void increment(const TileArgs& args, uint32_t row) {
  args.arg<uint32_t>(0)[row] += args.constants_as<Constants>().value;
}
void append(const TileArgs& args, uint32_t) {
  auto* log = args.arg<uint32_t>(1);
  log[1 + log[0]++] = args.arg<uint32_t>(0)[0];
}
void thread(const TileArgs& args, uint32_t row) { args.arg<uint64_t>(0)[row] = this_thread(); }

void record_prologue(const TileArgs& args) {
  auto& record = *reinterpret_cast<WorkerRecord*>(args.scratch);
  record.thread = this_thread();
  ++record.prologues;
}
void record(const TileArgs& args, uint32_t row) {
  auto& record = *reinterpret_cast<WorkerRecord*>(args.scratch);
  if (record.thread != this_thread()) ++record.broken;
  ++record.tiles;
  ++args.arg<uint32_t>(0)[row];
}

std::atomic<uint32_t> prefetch_count{0};
void count_prefetch(const TileArgs& args) {
  volatile uint32_t first = args.arg<uint32_t>(0)[0];
  (void)first;
  prefetch_count.fetch_add(1, std::memory_order_relaxed);
}

void meet(const TileArgs& args, uint32_t row) {
  const std::atomic_ref<uint32_t> word(*args.arg<uint32_t>(0));
  word.fetch_or(1u << args.constants_as<Constants>().value);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (word.load() != 3 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  args.arg<uint32_t>(1)[row] = word.load() == 3 ? 1 : 0;
}

void throw_at(const TileArgs& args, uint32_t row) {
  if (row == args.constants_as<Constants>().value) throw std::runtime_error("row " + std::to_string(row));
}

constexpr ArgumentSpec kOut[] = {{"output", Access::out, true, false}};
constexpr ArgumentSpec kInout[] = {{"data", Access::inout, true, false}};
constexpr ArgumentSpec kInOut[] = {{"input", Access::in, true, false}, {"output", Access::out, true, false}};
constexpr ArgumentSpec kInInOut[] = {
    {"a", Access::in, true, false}, {"b", Access::in, true, false}, {"output", Access::out, true, false}};
constexpr ArgumentSpec kInLog[] = {{"input", Access::in, true, false}, {"log", Access::inout, false, false}};

constexpr ArgumentSpec kStatusOut[] = {{"word", Access::accumulate}, {"output", Access::out, true, false}};

OpSchema schema(std::string_view name, std::span<const ArgumentSpec> args) {
  OpSchema result;
  result.name = name;
  result.args = args;
  result.constants_bytes = sizeof(Constants);
  return result;
}

const OpSchema kFillOp = schema("fill", kOut);
const OpSchema kCopyOp = schema("copy", kInOut);
const OpSchema kAddOp = schema("add", kInInOut);
const OpSchema kIncrementOp = schema("increment", kInout);
const OpSchema kAppendOp = schema("append", kInLog);
const OpSchema kThreadOp = schema("thread", kOut);
const OpSchema kRecordOp = schema("record", kInout);
const OpSchema kMeetOp = schema("meet", kStatusOut);
const OpSchema kThrowOp = schema("throw", kInout);
const OpSchema kPrefetchedOp = schema("prefetched", kInOut);

constexpr TileKernel kFillTiles{nullptr, nullptr, tiles<fill>};
constexpr TileKernel kCopyTiles{nullptr, nullptr, tiles<copy>};
constexpr TileKernel kAddTiles{nullptr, nullptr, tiles<add>};
constexpr TileKernel kIncrementTiles{nullptr, nullptr, tiles<increment>};
constexpr TileKernel kAppendTiles{nullptr, nullptr, tiles<append>};
constexpr TileKernel kThreadTiles{nullptr, nullptr, tiles<thread>};
constexpr TileKernel kRecordTiles{nullptr, record_prologue, tiles<record>};
constexpr TileKernel kMeetTiles{nullptr, nullptr, tiles<meet>};
constexpr TileKernel kThrowTiles{nullptr, nullptr, tiles<throw_at>};
constexpr TileKernel kPrefetchedTiles{count_prefetch, nullptr, tiles<copy>};

Kernel kernel(std::string_view name, const OpSchema& op, const TileKernel& entry, uint64_t prefetches = 0) {
  Kernel result;
  result.name = name;
  result.op = &op;
  result.prefetches = prefetches;
  result.entry = &entry;
  return result;
}

bool overlap(const Argument& a, const Argument& b) {
  return a.view.bytes > 0 && b.view.bytes > 0 && a.view.allocation == b.view.allocation &&
         a.view.offset_bytes < b.view.offset_bytes + b.view.bytes &&
         b.view.offset_bytes < a.view.offset_bytes + a.view.bytes;
}

}  // namespace

const Kernel kFill = kernel("fill_test", kFillOp, kFillTiles);
const Kernel kCopy = kernel("copy_test", kCopyOp, kCopyTiles);
const Kernel kAdd = kernel("add_test", kAddOp, kAddTiles);
const Kernel kIncrement = kernel("increment_test", kIncrementOp, kIncrementTiles);
const Kernel kAppend = kernel("append_test", kAppendOp, kAppendTiles);
const Kernel kThread = kernel("thread_test", kThreadOp, kThreadTiles);
const Kernel kRecord = kernel("record_test", kRecordOp, kRecordTiles);
const Kernel kPrefetched = kernel("prefetched_test", kPrefetchedOp, kPrefetchedTiles, 1);
const Kernel kMeet = kernel("meet_test", kMeetOp, kMeetTiles);
const Kernel kThrow = kernel("throw_test", kThrowOp, kThrowTiles);

std::span<const Kernel> test_kernels() {
  static const Kernel kTable[] = {kFill,   kCopy,   kAdd,        kIncrement, kAppend,
                                  kThread, kRecord, kPrefetched, kMeet,      kThrow};
  return kTable;
}

uint32_t prefetch_calls() { return prefetch_count.load(std::memory_order_relaxed); }

uint32_t PlanBuilder::add(const Kernel& kernel, std::initializer_list<Argument> args,
                          const Options& options) {
  const auto index = static_cast<uint32_t>(plan.commands.size());
  PlanCommand command;
  command.kernel = &kernel;
  command.launch = options.launch;
  command.args.first = static_cast<uint32_t>(plan.args.size());
  plan.args.insert(plan.args.end(), args.begin(), args.end());
  auto count = static_cast<uint32_t>(args.size());
  if (options.live.view.bytes > 0) {
    plan.args.push_back(options.live);
    command.live_arg = count++;
  }
  if (options.scratch.view.bytes > 0) {
    plan.args.push_back(options.scratch);
    command.scratch_arg = count++;
  }
  command.args.count = count;
  command.constants = {static_cast<uint32_t>(align_up(plan.constants.size(), 16)), sizeof(Constants)};
  plan.constants.resize(command.constants.first + sizeof(Constants));
  std::memcpy(plan.constants.data() + command.constants.first, &options.constants, sizeof(Constants));
  command.deps = {static_cast<uint32_t>(plan.deps.size()), static_cast<uint32_t>(options.deps.size())};
  plan.deps.insert(plan.deps.end(), options.deps.begin(), options.deps.end());
  command.label = static_cast<uint32_t>(plan.labels.size());
  plan.labels.push_back(options.label.empty() ? std::string(kernel.op->name) + " " + std::to_string(index)
                                              : options.label);
  plan.commands.push_back(command);
  set_level(index);
  return index;
}

uint32_t PlanBuilder::fence(std::initializer_list<uint32_t> deps) {
  PlanCommand command;
  command.kind = CommandKind::fence;
  command.deps = {static_cast<uint32_t>(plan.deps.size()), static_cast<uint32_t>(deps.size())};
  plan.deps.insert(plan.deps.end(), deps.begin(), deps.end());
  command.label = static_cast<uint32_t>(plan.labels.size());
  plan.labels.push_back("fence");
  plan.commands.push_back(command);
  return static_cast<uint32_t>(plan.commands.size()) - 1;
}

void PlanBuilder::set_level(uint32_t index) {
  PlanCommand& command = plan.commands[index];
  command.level = 0;
  for (uint32_t k = 0; k < command.deps.count; ++k) {
    const PlanCommand& dep = plan.commands[plan.deps[command.deps.first + k]];
    if (dep.kind == CommandKind::kernel) command.level = std::max(command.level, dep.level + 1);
  }
}

void PlanBuilder::derive_deps() {
  const auto count = static_cast<uint32_t>(plan.commands.size());
  std::vector<std::vector<bool>> before(count,
                                        std::vector<bool>(count, false));  // [i][j]: j completes before i
  plan.deps.clear();
  for (uint32_t i = 0; i < count; ++i) {
    PlanCommand& command = plan.commands[i];
    command.deps.first = static_cast<uint32_t>(plan.deps.size());
    // From the latest back: what an accepted dep implies is not stored again.
    for (uint32_t j = i; j-- > 0;) {
      if (before[i][j]) continue;
      const PlanCommand& other = plan.commands[j];
      bool conflict = false;
      for (uint32_t a = 0; a < command.args.count; ++a) {
        for (uint32_t b = 0; b < other.args.count; ++b) {
          const Argument& x = plan.args[command.args.first + a];
          const Argument& y = plan.args[other.args.first + b];
          conflict = conflict || (overlap(x, y) && (x.access != Access::in || y.access != Access::in));
        }
      }
      if (!conflict) continue;
      plan.deps.push_back(j);
      before[i][j] = true;
      for (uint32_t k = 0; k < j; ++k) {
        if (before[j][k]) before[i][k] = true;
      }
    }
    command.deps.count = static_cast<uint32_t>(plan.deps.size()) - command.deps.first;
    set_level(i);
  }
}

BufferView view(const Allocation* allocation) { return {allocation, 0, allocation->bytes}; }
BufferView view(const Allocation* allocation, size_t offset_bytes, size_t bytes) {
  return {allocation, offset_bytes, bytes};
}
BufferView arena_view(size_t offset_bytes, size_t bytes) { return {nullptr, offset_bytes, bytes}; }
void clear(Backend& device, const Allocation* allocation) {
  device.write(view(allocation), std::vector<std::byte>(allocation->bytes));
}
Argument in(const BufferView& view) { return {view, Access::in, false}; }
Argument out(const BufferView& view) { return {view, Access::out, false}; }
Argument inout(const BufferView& view) { return {view, Access::inout, false}; }
Argument sealed(const BufferView& view) { return {view, Access::in, true}; }

}  // namespace refrain::backend::testing
