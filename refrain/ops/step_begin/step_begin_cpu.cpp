// Begin of a step, portable kernel: one tile, since where a request's tokens begin depends on those before it.
#include <algorithm>

#include "refrain/ops/step_begin/step_begin.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

/// Where a request begins, and how many of its rows are computed.
struct Resolved {
  uint32_t position = 0;
  uint32_t rows = 0;
  uint32_t status = 0;
};

Resolved resolve(const StepRequest& request, uint32_t rows, bool goes_on, const Slot& slot,
                 uint32_t context) {
  const uint32_t position = request.position == kAtLength ? slot.length : request.position;
  if (position > slot.length) return {position, 0, kPositionOutOfRange};
  if (goes_on) {
    const uint32_t end = std::min(slot.limit, context);
    if (slot.stopped != 0 || position >= end) return {position, 0, 0};
    return {position, std::min(rows, end - position), 0};
  }
  if (uint64_t{position} + rows > context) return {position, 0, kPositionOutOfRange};
  return {position, rows, 0};
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  if (begin == end) return;
  const auto& c = args.constants_as<StepBeginConstants>();
  const StepHeader sent = *args.arg<const StepHeader>(0);
  const uint32_t row_count = std::min(sent.rows, c.rows);
  const uint32_t segment_count = std::min(sent.segments, c.segments);
  const uint32_t output_count = std::min(sent.outputs, c.outputs);
  const auto* requests = reinterpret_cast<const StepRequest*>(args.arg<const StepHeader>(0) + 1);
  const auto* tokens = reinterpret_cast<const uint32_t*>(requests + segment_count);
  const uint32_t* wanted = tokens + row_count;
  const Slot* slots = args.arg<const Slot>(1);
  StepRow* rows = args.arg<StepRow>(3);
  StepSegment* segments = args.arg<StepSegment>(4);
  uint32_t* outputs = args.arg<uint32_t>(5);
  uint32_t* status = args.arg<uint32_t>(6);

  std::fill_n(rows, c.rows, StepRow{});
  std::fill_n(segments, c.segments, StepSegment{});
  std::fill_n(outputs, c.outputs, kIdle);
  StepHeader live{0, segment_count, 0, 0};
  uint32_t first = 0;
  for (uint32_t g = 0; g < segment_count; ++g) {
    const StepRequest& request = requests[g];
    const uint32_t count = std::min(request.rows, row_count - first);
    const uint32_t begin_row = first;
    first += count;
    if (request.slot == kIdle || count == 0) continue;
    if (request.slot >= c.slots) {
      raise_status(status, c.slots, kSlotOutOfRange);
      continue;
    }
    const Slot& slot = slots[request.slot];
    const bool goes_on = tokens[begin_row] == kLastToken;
    const Resolved resolved = resolve(request, count, goes_on, slot, c.context_tokens);
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
  *args.arg<StepHeader>(2) = live;
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> step_begin_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "step_begin_u32",
      .op = &step_begin_schema,
      .numerics = "exact, integer",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = [](const backend::OpCall&, const backend::DeviceInfo&) { return backend::Launch{}; },
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
