// What step_begin does, for every kernel of it: one thread, since where a request's tokens begin depends on those before it.
#pragma once

#include <cstdint>

#include "refrain/core/host_device.h"
#include "refrain/ops/step_begin/step_begin.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {

/// Where a request begins, and how many of its rows are computed.
struct ResolvedRequest {
  uint32_t position = 0;
  uint32_t rows = 0;
  uint32_t status = 0;
};

constexpr uint32_t lesser(uint32_t a, uint32_t b) { return a < b ? a : b; }

REFRAIN_HD inline ResolvedRequest resolve_request(const StepRequest& request, uint32_t rows, bool goes_on,
                                                  const Slot& slot, uint32_t context) {
  const uint32_t position = request.position == kAtLength ? slot.length : request.position;
  if (position > slot.length) return {position, 0, kPositionOutOfRange};
  if (goes_on) {
    const uint32_t end = lesser(slot.limit, context);
    if (slot.stopped != 0 || position >= end) return {position, 0, 0};
    return {position, lesser(rows, end - position), 0};
  }
  if (uint64_t{position} + rows > context) return {position, 0, kPositionOutOfRange};
  return {position, rows, 0};
}

/// `args`: of the schema.
REFRAIN_HD inline void resolve_step(const StepBeginConstants& c, void* const* args) {
  const StepHeader sent = *static_cast<const StepHeader*>(args[0]);
  const uint32_t row_count = lesser(sent.rows, c.rows);
  const uint32_t segment_count = lesser(sent.segments, c.segments);
  const uint32_t output_count = lesser(sent.outputs, c.outputs);
  const auto* requests = reinterpret_cast<const StepRequest*>(static_cast<const StepHeader*>(args[0]) + 1);
  const auto* tokens = reinterpret_cast<const uint32_t*>(requests + segment_count);
  const uint32_t* wanted = tokens + row_count;
  const auto* slots = static_cast<const Slot*>(args[1]);
  auto* rows = static_cast<StepRow*>(args[3]);
  auto* segments = static_cast<StepSegment*>(args[4]);
  auto* outputs = static_cast<uint32_t*>(args[5]);
  auto* status = static_cast<uint32_t*>(args[6]);

  for (uint32_t r = 0; r < c.rows; ++r) rows[r] = StepRow{};
  for (uint32_t g = 0; g < c.segments; ++g) segments[g] = StepSegment{};
  for (uint32_t o = 0; o < c.outputs; ++o) outputs[o] = kIdle;
  StepHeader live{0, segment_count, 0, 0};
  uint32_t first = 0;
  for (uint32_t g = 0; g < segment_count; ++g) {
    const StepRequest& request = requests[g];
    const uint32_t count = lesser(request.rows, row_count - first);
    const uint32_t begin_row = first;
    first += count;
    if (request.slot == kIdle || count == 0) continue;
    if (request.slot >= c.slots) {
      raise_status(status, c.slots, kSlotOutOfRange);
      continue;
    }
    const Slot& slot = slots[request.slot];
    const bool goes_on = tokens[begin_row] == kLastToken;
    const ResolvedRequest resolved = resolve_request(request, count, goes_on, slot, c.context_tokens);
    raise_status(status, request.slot, resolved.status);
    for (uint32_t i = 0; i < resolved.rows; ++i) {
      const uint32_t token = goes_on && i == 0 ? slot.last_token : tokens[begin_row + i];
      rows[begin_row + i] = {token, resolved.position + i, request.slot, kNoToken};
    }
    if (resolved.rows != 0) live.rows = begin_row + resolved.rows;
    segments[g] = {request.slot, begin_row, resolved.rows,
                   request.state_from == kSlotState ? slot.state_version : request.state_from};
  }
  for (uint32_t o = 0; o < output_count; ++o) {
    if (wanted[o] >= row_count) {
      raise_status(status, c.slots, kOutputOutOfRange);
    } else if (rows[wanted[o]].slot != kIdle) {
      outputs[o] = wanted[o];
      live.outputs = o + 1;
    }
  }
  *static_cast<StepHeader*>(args[2]) = live;
}

}  // namespace refrain::ops
