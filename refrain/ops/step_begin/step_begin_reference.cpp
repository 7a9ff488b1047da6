// Begin of a step, the reference: every word of the results by itself, in 64 bits.
#include <algorithm>

#include "refrain/ops/step_begin/step_begin.h"

namespace refrain::ops {
namespace {

constexpr uint64_t kAll = 0xFFFFFFFF;

}  // namespace

void step_begin_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<StepBeginConstants>();
  const uint32_t* block = args.arg<const uint32_t>(0);
  uint32_t *live = args.arg<uint32_t>(2), *rows = args.arg<uint32_t>(3), *segments = args.arg<uint32_t>(4),
           *outputs = args.arg<uint32_t>(5), *status = args.arg<uint32_t>(6);
  const uint64_t sent_rows = std::min(block[0], c.rows), sent_segments = std::min(block[1], c.segments),
                 sent_outputs = std::min(block[2], c.outputs);
  const uint32_t* tokens = block + 4 + 4 * sent_segments;
  uint32_t live_rows = 0, live_outputs = 0;

  for (uint64_t r = 0; r < c.rows; ++r) {
    const uint32_t idle[4] = {0, 0, 0xFFFFFFFF, 0xFFFFFFFF};
    std::copy_n(idle, 4, rows + 4 * r);
  }
  uint64_t next = 0;
  for (uint64_t g = 0; g < c.segments; ++g) {
    uint32_t* segment = segments + 4 * g;
    const uint32_t idle[4] = {0xFFFFFFFF, 0, 0, 0};
    std::copy_n(idle, 4, segment);
    if (g >= sent_segments) continue;
    const uint32_t* request = block + 4 + 4 * g;
    const uint64_t first = next, count = std::min<uint64_t>(request[1], sent_rows - next);
    next += count;
    if (request[0] == kAll || count == 0) continue;
    if (request[0] >= c.slots) {
      status[c.slots] |= 8;
      continue;
    }
    const uint32_t* slot = args.arg<const uint32_t>(1) + uint64_t{16} * request[0];
    const bool last = tokens[first] == kAll;
    const uint64_t position = request[2] == kAll ? slot[0] : request[2];
    uint64_t end = c.context_tokens;  // rows at or past it are not computed
    if (last) end = std::min<uint64_t>(end, slot[1]);
    const bool refused = position > slot[0] || (!last && position + count > end);
    if (refused) status[request[0]] |= 2;
    segment[0] = request[0];
    segment[1] = static_cast<uint32_t>(first);
    segment[3] = request[3] == kAll ? slot[7] : request[3];
    for (uint64_t i = 0; i < count; ++i) {
      if (refused || position + i >= end || (last && slot[3] != 0)) continue;
      const uint32_t row[4] = {last && i == 0 ? slot[2] : tokens[first + i],
                               static_cast<uint32_t>(position + i), request[0], 0xFFFFFFFF};
      std::copy_n(row, 4, rows + 4 * (first + i));
      ++segment[2];
      live_rows = static_cast<uint32_t>(first + i + 1);
    }
  }
  for (uint64_t o = 0; o < c.outputs; ++o) {
    outputs[o] = 0xFFFFFFFF;
    if (o >= sent_outputs) continue;
    const uint32_t wanted = tokens[sent_rows + o];
    if (wanted >= sent_rows) {
      status[c.slots] |= 16;
    } else if (rows[4 * uint64_t{wanted} + 2] != kAll) {
      outputs[o] = wanted;
      live_outputs = static_cast<uint32_t>(o + 1);
    }
  }
  const uint32_t counts[4] = {live_rows, static_cast<uint32_t>(sent_segments), live_outputs, 0};
  std::copy_n(counts, 4, live);
}

}  // namespace refrain::ops
