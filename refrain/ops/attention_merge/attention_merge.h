// The second half of attention in two: joins what attention_part has computed.
#pragma once

#include <cstdint>

#include "refrain/ops/attention/attention.h"

namespace refrain::ops {

struct AttentionMerge {
  Operand sums;
  Operand weighted;
  Operand rows;
  Operand output;
  uint32_t window = 0;  ///< as of AttentionPart
};

/// Joins the chunks that attention_part() has computed, in ascending order, into what attention() gives, bit for bit.
///
/// For row r at position p, with (m_i, l_i) = sums[r, i, h], a_i = weighted[r, i, h], i = 0 .. n - 1, n the
/// chunks of 256 that the row's positions lie in:
///   M = max_i m_i;  output[r, h] = sum_i e^(m_i - M) a_i / sum_i e^(m_i - M) l_i
///
/// sums: f32 [R, C, H, 2], rows. weighted: f32 [R, C, H, D], rows. rows: u32 [R, 4], rows, of which the position is
/// read. output: f32 [R, H, D], rows. Aliasing: none. Errors: InvalidArgument for shapes that do not fit. A row whose
/// first chunk has l = 0 (idle or out of range) gives zeros; of a row that lies in more than C chunks the first C
/// count. Accuracy: with e = 2^-24, (12 n + 8) e max_i |a_i / l_i|. Source: Milakov and Gimelshein, 2018; Dao et al.,
/// 2023 (flash decoding).
void attention_merge(CommandEncoder& encoder, const AttentionMerge& args);

struct AttentionMergeConstants {
  uint32_t rows = 0;
  uint32_t heads = 0;
  uint32_t head_dim = 0;
  uint32_t chunks = 0;  ///< C
  uint32_t window = 0;

  /// Chunks of a row at `position`.
  constexpr uint32_t chunks_of(uint32_t position) const {
    const uint32_t seen =
        position / kAttentionChunk - attention_first_position(position, window) / kAttentionChunk + 1;
    return seen < chunks ? seen : chunks;
  }
};

extern const backend::OpSchema attention_merge_schema;
void attention_merge_reference(const backend::TileArgs& args);
backend::Launch attention_merge_launch(const backend::OpCall& call, const backend::DeviceInfo& info);

}  // namespace refrain::ops
