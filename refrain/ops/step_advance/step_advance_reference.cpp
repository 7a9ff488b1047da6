// Advance of the step block, the reference: words by index, in 64 bits.
#include <algorithm>

#include "refrain/ops/step_advance/step_advance.h"

namespace refrain::ops {

void step_advance_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<StepAdvanceConstants>();
  uint32_t* rows = args.arg<uint32_t>(0);
  uint32_t* sequences = args.arg<uint32_t>(1);
  uint32_t* tokens = args.arg<uint32_t>(2);
  constexpr uint64_t kLimit = 0xFFFFFFFF;
  for (size_t r = 0; r < args.live_rows; ++r) {
    uint32_t* row = rows + 4 * r;
    const uint64_t position = std::min(uint64_t{row[1]} + 1, kLimit);
    row[0] = row[3];
    if (tokens != nullptr) tokens[r] = row[3];
    row[1] = static_cast<uint32_t>(position);
    if (row[2] < c.sequences)
      sequences[8 * size_t{row[2]}] = static_cast<uint32_t>(std::min(position + 1, kLimit));
  }
}

}  // namespace refrain::ops
