// Causal attention of a ragged batch over the paged cache of one layer, with grouped key and value heads.
#pragma once

#include <cstdint>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

struct Attention {
  Operand query;
  Operand rows;
  Operand page_table;
  Operand cache;
  Operand status;
  Operand output;
  float scale = 1;      ///< of the scores, usually 1 / sqrt(D)
  uint32_t window = 0;  ///< W, positions that a row attends to, its own the last; 0: all
  float softcap = 0;    ///< C, which no score exceeds; 0: none
};

/// Attends from each row to its slot's cached positions up to its own.
///
/// For row r at position p, query head h, g = h / (H / KVH), k_j and v_j the cached key and value of position
/// j:
///   s_j = scale (query[r, h] . k_j), b <= j <= p;  output[r, h] = sum_j e^s_j v_j / sum_j e^s_j,
/// b = 0, or max(0, p + 1 - W) with a window; of positions before b nothing is read, nor are their pages. With a
/// cap, C tanh(s_j / C) is in the place of s_j.
/// The positions are taken in blocks of 64 and chunks of 256 from position 0, each with its own greatest score m,
/// sum l and weighted values a. Blocks join within their chunk, then chunks, both in ascending order: M = max(m, m'),
/// l = l e^(m - M) + l' e^(m' - M), a likewise. So chunks can be computed apart (attention_part) and joined later
/// (attention_merge) with the same bits; a plan may do so (PlanOptions::splits).
///
/// query: f32 [R, H, D], rows. rows: u32 [R, 4], rows. page_table: u32 [S, P], of the layer's cache
/// group: position j lies in page page_table[slot, j / 64].
/// cache: f32 or f16 [2, pages, KVH, 64, D], keys and values, which already holds the rows' own; H divisible by KVH.
/// An element of f16 counts as the f32 of its value, so the bits are those of a cache in f32 that holds these values.
/// status: u32 [S + 1]. output: f32 [R, H, D], rows.
/// Aliasing: none. Errors: InvalidArgument for shapes that do not fit, and for a cap that is infinite or below 0. An idle row gives zeros; one
/// whose slot, position (64 P or more) or one of whose pages is out of range gives zeros and raises its status
/// bit. Accuracy: with e = 2^-24, d = (D + 4) e scale |query| max |k| + e (max s - min s), with a cap
/// 9 e max |s| more, bounds the error of the scores, and (2 d + (p / 20 + 200) e) max_j |v_j| that of the output. Source: Vaswani et al.,
/// 2017; Shazeer, 2019 (groups); Milakov and Gimelshein, 2018 (running softmax);
/// Gemma Team, 2024 (cap).
void attention(CommandEncoder& encoder, const Attention& args);

/// Positions of a chunk: partial results of whole chunks are what may be stored and joined later.
inline constexpr uint32_t kAttentionChunk = 256;
inline constexpr uint32_t kAttentionChunkPages = kAttentionChunk / kPagePositions;

/// The first position that a row at `position` attends to, with a window (0: none).
constexpr uint32_t attention_first_position(uint32_t position, uint32_t window) {
  return window != 0 && position >= window ? position - window + 1 : 0;
}

struct AttentionConstants {
  uint32_t rows = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t slots = 0;           ///< S
  uint32_t pages_per_slot = 0;  ///< P
  uint32_t pages = 0;
  float scale = 1;
  uint32_t window = 0;  ///< 0: all positions
  DType cache_type = DType::f32;
  float softcap = 0;  ///< 0: none

  constexpr uint32_t first_position(uint32_t position) const {
    return attention_first_position(position, window);
  }
  /// The most chunks that a row attends to.
  constexpr uint32_t chunks() const {
    const uint32_t all = ceil_div(pages_per_slot, kAttentionChunkPages);
    const uint64_t seen = (uint64_t{window} + kAttentionChunk - 2) / kAttentionChunk + 1;
    return window != 0 && seen < all ? static_cast<uint32_t>(seen) : all;
  }
};

// What the schemas of attention and attention_part share.

/// Arguments 0 to 4 (query, rows, page table, cache, status) fit each other and `constants`.
void expect_attention(const backend::OpCall& call, const AttentionConstants& constants);
AttentionConstants attention_constants(const Operand& query, const Operand& page_table, const Operand& cache,
                                       float scale, uint32_t window, float softcap);
backend::Cost attention_cost(const backend::OpCall& call, const AttentionConstants& constants);

/// Rows of one tile; they share what they read of the cache.
inline constexpr uint32_t kAttentionMaxBlockRows = 8;
uint32_t attention_rows_per_block(const AttentionConstants& constants);

extern const backend::OpSchema attention_schema;
void attention_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
