// Gathering of rows, the reference: element by element.
#include "refrain/ops/gather_rows/gather_rows.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

void gather_rows_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<GatherRowsConstants>();
  const float* input = args.arg<const float>(0);
  const uint32_t* index = args.arg<const uint32_t>(1);
  const uint32_t live_input_rows = *args.arg<const uint32_t>(2);
  float* output = args.arg<float>(4);
  for (size_t o = 0; o < args.live_rows; ++o) {
    const bool valid = index[o] < c.input_rows && index[o] < live_input_rows;
    if (!valid && index[o] != 0xFFFFFFFF) args.arg<uint32_t>(3)[c.status_word] |= kOutputOutOfRange;
    for (size_t k = 0; k < c.columns; ++k) {
      output[o * c.columns + k] = valid ? input[size_t{index[o]} * c.columns + k] : 0.0f;
    }
  }
}

}  // namespace refrain::ops
