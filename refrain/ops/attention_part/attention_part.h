// The first half of attention in two: what each chunk of 256 positions gives by itself.
#pragma once

#include <cstdint>

#include "refrain/backend/rewrite.h"
#include "refrain/ops/attention/attention.h"

namespace refrain::ops {

struct AttentionPart {
  Operand query;
  Operand rows;
  Operand page_table;
  Operand cache;
  Operand status;
  Operand sums;
  Operand weighted;
  float scale = 1;      ///< as of Attention
  uint32_t window = 0;  ///< as of Attention
  float softcap = 0;    ///< as of Attention
  uint32_t parts =
      1;  ///< into which the chunks of a row are dealt, to be computed at the same time; not in the bits
};

/// Attends from each row to each chunk of its slot's cached positions by itself.
///
/// A chunk is 256 positions from a multiple of 256 on. For row r at position p, query head h and the i-th chunk
/// that has positions j of b..p (b and s_j as in attention()):
///   sums[r, i, h] = m, l;  weighted[r, i, h] = a;  m = max_j s_j, l = sum_j e^(s_j - m), a = sum_j e^(s_j - m) v_j
///
/// query, rows, page_table, cache, status: as of attention(). sums: f32 [R, C, H, 2], rows. weighted:
/// f32 [R, C, H, D], rows; C = ceil(P / 4), with a window W at most (W + 254) / 256 + 1, rounded down.
/// Of a row that has fewer chunks what lies behind them is unspecified, and attention_merge() does not read it.
/// Aliasing: none. Errors: as of attention(); a row that is idle or out of range has l = 0 in its first chunk.
/// Accuracy: as of attention(), for m and for the quotients a / l. Source: Dao et al., 2023 (flash decoding).
void attention_part(CommandEncoder& encoder, const AttentionPart& args);

struct AttentionPartConstants {
  AttentionConstants attention;
  uint32_t parts = 1;
};

/// attention as attention_part and attention_merge, with the same bits. Where the target says in how many parts, in
/// so many (at most the chunks of the context); else on backends that compose, where a few rows of a long context
/// have too few key-value heads to keep all workers busy.
extern const backend::Rewrite split_attention;

extern const backend::OpSchema attention_part_schema;
void attention_part_reference(const backend::TileArgs& args);
backend::Launch attention_part_launch(const backend::OpCall& call, const backend::DeviceInfo& info);

}  // namespace refrain::ops
