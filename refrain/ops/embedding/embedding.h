// embedding: the weight rows that tokens name, as f32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct Embedding {
  Operand weight;
  Operand rows;
  Operand status;
  Operand output;
  float scale = 1;  ///< of what is fetched
};

/// Fetches the weight row of each row's token.
///
/// output[r] = weight[rows[r].token] * scale
///
/// `weight`: Weight [V, K] of any format, packed for Use::gather. `rows`: u32 [R, 4], the StepRows. `status`: u32
/// [S + 1], words that are only OR-ed into. `output`: f32 [R, K]; only its live rows are written. Aliasing: `output`
/// overlaps no other argument. Errors: InvalidArgument where shapes, dtypes or the weight's layout do not fit. An idle
/// row gives zeros; a token of V or more gives zeros and kTokenOutOfRange in its slot's status word; a slot of S or more
/// gives zeros and kSlotOutOfRange in the last word.
/// Accuracy: exactly what the weight's format decodes to; a scale other than 1 rounds once more.
void embedding(CommandEncoder& encoder, const Embedding& args);

struct EmbeddingConstants {
  uint32_t rows = 0;
  uint32_t slots = 0;  ///< S
  uint32_t vocabulary = 0;
  uint32_t columns = 0;
  const WeightFormat* format = nullptr;
  float scale = 1;

  backend::WeightInfo weight() const { return {format, Shape{vocabulary, columns}}; }
  /// Whole rows, about 16384 elements.
  uint32_t rows_per_tile() const { return std::clamp(16384 / columns, 1u, rows); }
};

extern const backend::OpSchema embedding_schema;

}  // namespace refrain::ops
