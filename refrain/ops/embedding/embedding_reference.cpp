// embedding: the reference.
#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

void embedding_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<EmbeddingConstants>();
  auto* status = args.arg<uint32_t>(2);
  for (size_t r = 0; r < args.live_rows; ++r) {
    const StepRow row = args.arg<const StepRow>(1)[r];
    float* output = args.arg<float>(3) + r * c.columns;
    const bool slot_good = row.slot < c.slots;
    const bool good = slot_good && row.token < c.vocabulary;
    if (!good && row.slot != kIdle)
      status[slot_good ? row.slot : c.slots] |= slot_good ? kTokenOutOfRange : kSlotOutOfRange;
    std::fill_n(output, c.columns, 0.0f);
    if (good) {
      const size_t token = row.token;
      matrix_layout(*c.format).unpack(c.weight(), args.arg<const std::byte>(0), {token, token + 1}, output);
      for (size_t k = 0; k < c.columns; ++k) output[k] = static_cast<float>(double{output[k]} * c.scale);
    }
  }
}

}  // namespace refrain::ops
