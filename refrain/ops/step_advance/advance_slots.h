// What step_advance does, for every kernel of it: one thread, since results are appended in the order of the segments.
#pragma once

#include <atomic>
#include <cstdint>

#include "refrain/core/host_device.h"
#include "refrain/ops/step_advance/step_advance.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

/// The word as it was; 0 stays there.
REFRAIN_HD inline uint32_t take_word(uint32_t& word) {
  const uint32_t value = word;
  word = 0;
  return value;
}

/// Stores the counts, which the host may read while others run; what was stored before is seen by who sees them.
REFRAIN_HD inline void publish(RingHeader& header, uint32_t appended, uint32_t steps) {
#if defined(__CUDA_ARCH__)
  __threadfence_system();
  // One store: a fence that reaches the host takes its time.
  *reinterpret_cast<volatile uint64_t*>(&header) = uint64_t{steps} << 32 | appended;
#else
  std::atomic_ref<uint32_t>(header.appended).store(appended, std::memory_order_release);
  std::atomic_ref<uint32_t>(header.steps).store(steps, std::memory_order_release);
#endif
}

/// `args`: of the schema; `counts`: the ring's header as the step before has left it.
REFRAIN_HD inline void advance_slots(const StepAdvanceConstants& c, void* const* args,
                                     const RingHeader& counts) {
  const auto* segments = static_cast<const StepSegment*>(args[0]);
  const auto* rows = static_cast<const StepRow*>(args[1]);
  const auto* stop_sets = static_cast<const uint32_t*>(args[2]);
  auto* slots = static_cast<Slot*>(args[3]);
  auto* status = static_cast<uint32_t*>(args[4]);
  RingHeader& header = *static_cast<RingHeader*>(args[5]);
  auto* entries = reinterpret_cast<StepResult*>(&header + 1);
  uint32_t appended = counts.appended;
  for (uint32_t g = 0; g < c.segments; ++g) {
    const StepSegment& segment = segments[g];
    if (segment.slot >= c.slots || uint64_t{segment.first_row} + segment.rows > c.rows) continue;
    Slot& slot = slots[segment.slot];
    uint32_t bits = take_word(status[segment.slot]);
    uint32_t token = kNoToken;
    if (segment.rows != 0) {
      const StepRow& last = rows[segment.first_row + segment.rows - 1];
      slot.length = last.position == UINT32_MAX ? UINT32_MAX : last.position + 1;
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
      for (uint32_t i = 0; i < kStopIds; ++i) stopped |= ids[i] == token ? kStopId : 0u;
    }
    const uint32_t limit = slot.limit < c.context_tokens ? slot.limit : c.context_tokens;
    if (slot.length >= limit) stopped |= kStopLimit;
    slot.last_token = token;
    slot.stopped = stopped;
    if (token != kNoToken || bits != 0)
      entries[appended++ % c.entries] = {segment.slot, token, slot.length, bits | stopped};
  }
  if (const uint32_t bits = take_word(status[c.slots]); bits != 0)
    entries[appended++ % c.entries] = {kIdle, kNoToken, 0, bits};
  publish(header, appended, counts.steps + 1);
}

}  // namespace refrain::ops
