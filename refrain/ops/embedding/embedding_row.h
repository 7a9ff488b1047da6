// What the kernels of embedding share: tiles, and the bounds of what a row names.
#pragma once

#include "refrain/ops/embedding/embedding.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {

inline bool embedding_accepts(const backend::OpCall& call) { return is_matrix(call.args[0]); }

inline backend::Launch embedding_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<EmbeddingConstants>();
  return {.rows = c.rows, .rows_per_block = c.rows_per_tile(), .tiles_per_block = 1, .scratch_bytes = 0};
}

/// True when the row may be fetched; false: it is idle, or its status has been raised.
REFRAIN_HD inline bool embedding_row_valid(const EmbeddingConstants& c, const StepRow& row,
                                           uint32_t* status) {
  if (row.slot == kIdle) return false;
  if (row.slot >= c.slots) {
    raise_status(status, c.slots, kSlotOutOfRange);
    return false;
  }
  if (row.token >= c.vocabulary) {
    raise_status(status, row.slot, kTokenOutOfRange);
    return false;
  }
  return true;
}

/// Calls `Fetch::row(args, token, output)` for each valid live row of the tiles, writes zeros for the others.
template <class Fetch>
void embedding_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<EmbeddingConstants>();
  const size_t per_tile = c.rows_per_tile();
  const size_t last = std::min<size_t>(end * per_tile, args.live_rows);
  for (size_t r = begin * per_tile; r < last; ++r) {
    const StepRow row = args.arg<const StepRow>(1)[r];
    float* output = args.arg<float>(3) + r * c.columns;
    if (embedding_row_valid(c, row, args.arg<uint32_t>(2))) {
      Fetch::row(args, row.token, output);
      if (c.scale != 1)
        std::transform(output, output + c.columns, output, [&](float x) { return x * c.scale; });
    } else {
      std::fill_n(output, c.columns, 0.0f);
    }
  }
}

}  // namespace refrain::ops
