// Cache write, the reference: element by element, with checks of its own.
#include <cmath>

#include "refrain/core/half.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

void kv_write_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<KvWriteConstants>();
  const float* sources[2] = {args.arg<const float>(0), args.arg<const float>(1)};
  const StepRow* rows = args.arg<const StepRow>(2);
  const uint32_t* page_table = args.arg<const uint32_t>(3);
  uint32_t* status = args.arg<uint32_t>(5);
  for (size_t r = 0; r < args.live_rows; ++r) {
    const uint64_t position = rows[r].position;
    const uint64_t s = rows[r].slot;
    if (s == 0xFFFFFFFF) continue;
    if (s >= c.slots) {
      status[c.slots] |= kSlotOutOfRange;
      continue;
    }
    if (position >= uint64_t{64} * c.pages_per_slot) {
      status[s] |= kPositionOutOfRange;
      continue;
    }
    const uint64_t page = page_table[s * c.pages_per_slot + position / 64];
    if (page >= c.pages) {
      status[s] |= kPageOutOfRange;
      continue;
    }
    for (uint64_t kind = 0; kind < 2; ++kind) {
      for (uint64_t h = 0; h < c.kv_heads; ++h) {
        for (uint64_t d = 0; d < c.head_dim; ++d) {
          const uint64_t to =
              (((kind * c.pages + page) * c.kv_heads + h) * 64 + position % 64) * c.head_dim + d;
          const float value = sources[kind][(r * c.kv_heads + h) * c.head_dim + d];
          if (c.cache_type == DType::f16) {
            const bool rounds_to_infinity = std::abs(value) >= 65520.0f;
            args.arg<f16>(4)[to] =
                f16::from_float(rounds_to_infinity ? std::copysign(65504.0f, value) : value);
          } else {
            args.arg<float>(4)[to] = value;
          }
        }
      }
    }
  }
}

}  // namespace refrain::ops
