// Advance of the slots, the reference: words by index, in 64 bits.
#include <algorithm>

#include "refrain/ops/step_advance/step_advance.h"

namespace refrain::ops {

void step_advance_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<StepAdvanceConstants>();
  constexpr uint32_t kAll = 0xFFFFFFFF;
  uint32_t *status = args.arg<uint32_t>(4), *ring = args.arg<uint32_t>(5);
  const auto append = [&](uint32_t slot, uint32_t token, uint32_t length, uint32_t bits) {
    const uint32_t entry[4] = {slot, token, length, bits};
    std::copy_n(entry, 4, ring + 4 + 4 * uint64_t{ring[0] & (c.entries - 1)});
    ++ring[0];
  };
  for (uint64_t g = 0; g < c.segments; ++g) {
    const uint32_t* segment = args.arg<const uint32_t>(0) + 4 * g;
    const uint64_t end = uint64_t{segment[1]} + segment[2];
    if (segment[0] >= c.slots || end > c.rows) continue;
    uint32_t* slot = args.arg<uint32_t>(3) + uint64_t{16} * segment[0];
    const bool moved = segment[2] != 0, has_set = slot[6] != kAll, in_table = slot[6] < c.stop_sets;
    uint32_t bits = status[segment[0]];
    if (moved && has_set && !in_table) bits |= 64;
    status[segment[0]] = 0;
    if (!moved && bits == 0) continue;
    uint32_t drawn = kAll;
    if (moved) {
      const uint32_t* row = args.arg<const uint32_t>(1) + 4 * (end - 1);
      slot[0] = static_cast<uint32_t>(std::min<uint64_t>(uint64_t{row[1]} + 1, kAll));
      if (bits == 0) drawn = row[3];
    }
    uint32_t stop = bits != 0 ? 1u << 18 : 0;
    if (slot[0] >= slot[1] || slot[0] >= c.context_tokens) stop |= 1u << 17;
    for (uint64_t i = 0; drawn != kAll && has_set && i < 16; ++i) {
      if (args.arg<const uint32_t>(2)[uint64_t{16} * slot[6] + i] == drawn) stop |= 1u << 16;
    }
    slot[2] = drawn;
    slot[3] = stop;
    if (drawn != kAll || bits != 0) append(segment[0], drawn, slot[0], bits | stop);
  }
  if (status[c.slots] != 0) append(kAll, kAll, 0, status[c.slots]);
  status[c.slots] = 0;
  ++ring[1];
}

}  // namespace refrain::ops
