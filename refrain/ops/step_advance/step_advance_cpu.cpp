// Advance of the slots, portable kernel: one tile, since results are appended in the order of the segments.
#include <algorithm>
#include <atomic>
#include <utility>

#include "refrain/ops/step_advance/step_advance.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  if (begin == end) return;
  const auto& c = args.constants_as<StepAdvanceConstants>();
  const StepSegment* segments = args.arg<const StepSegment>(0);
  const StepRow* rows = args.arg<const StepRow>(1);
  const uint32_t* stop_sets = args.arg<const uint32_t>(2);
  Slot* slots = args.arg<Slot>(3);
  uint32_t* status = args.arg<uint32_t>(4);
  RingHeader& header = *args.arg<RingHeader>(5);
  StepResult* entries = reinterpret_cast<StepResult*>(&header + 1);
  uint32_t appended = header.appended;
  const auto append = [&](const StepResult& result) { entries[appended++ % c.entries] = result; };

  for (uint32_t g = 0; g < c.segments; ++g) {
    const StepSegment& segment = segments[g];
    if (segment.slot >= c.slots || uint64_t{segment.first_row} + segment.rows > c.rows) continue;
    Slot& slot = slots[segment.slot];
    uint32_t bits = std::exchange(status[segment.slot], 0u);
    uint32_t token = kNoToken;
    if (segment.rows != 0) {
      const StepRow& last = rows[segment.first_row + segment.rows - 1];
      slot.length = std::max(last.position + 1, last.position);  // stays at 2^32 - 1
      token = last.sampled;
      if (slot.stop_set != kNoTable && slot.stop_set >= c.stop_sets) bits |= kTableOutOfRange;
    } else if (bits == 0) {
      continue;
    }
    uint32_t stopped = 0;
    if (bits != 0) {
      stopped |= kStopError;
      token = kNoToken;
    } else if (token != kNoToken && slot.stop_set != kNoTable) {
      const uint32_t* ids = stop_sets + size_t{slot.stop_set} * kStopIds;
      if (std::find(ids, ids + kStopIds, token) != ids + kStopIds) stopped |= kStopId;
    }
    if (slot.length >= std::min(slot.limit, c.context_tokens)) stopped |= kStopLimit;
    slot.last_token = token;
    slot.stopped = stopped;
    if (token != kNoToken || bits != 0) append({segment.slot, token, slot.length, bits | stopped});
  }
  if (const uint32_t bits = std::exchange(status[c.slots], 0u); bits != 0) append({kIdle, kNoToken, 0, bits});
  std::atomic_ref<uint32_t>(header.appended).store(appended, std::memory_order_release);
  std::atomic_ref<uint32_t>(header.steps).store(header.steps + 1, std::memory_order_release);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> step_advance_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "step_advance_u32",
      .op = &step_advance_schema,
      .numerics = "exact, integer",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = [](const backend::OpCall&, const backend::DeviceInfo&) { return backend::Launch{}; },
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
