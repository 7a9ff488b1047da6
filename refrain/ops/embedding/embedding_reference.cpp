// embedding: the reference.
#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

void embedding_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<EmbeddingConstants>();
  const auto* weight = args.arg<const std::byte>(0);
  auto* status = args.arg<uint32_t>(2);
  for (size_t r = 0; r < args.live_rows; ++r) {
    const StepRow row = args.arg<const StepRow>(1)[r];
    float* output = args.arg<float>(3) + r * c.columns;
    const bool slot_good = row.slot < c.slots;
    const bool good = slot_good && row.token < c.vocabulary;
    if (!good && row.slot != kIdle)
      status[slot_good ? row.slot : c.slots] |= slot_good ? kTokenOutOfRange : kSlotOutOfRange;
    for (size_t k = 0; k < c.columns; ++k) {
      output[k] =
          good && c.bits == 0 ? float_at(weight, c.dtype, size_t{row.token} * c.columns + k) * c.scale : 0.0f;
    }
    if (good && c.bits != 0) {
      for_affine_row(weight, c.affine(), row.token, [&](size_t k, uint32_t code, double scale, double bias) {
        output[k] = static_cast<float>((scale * code + bias) * static_cast<double>(c.scale));
      });
    }
  }
}

}  // namespace refrain::ops
