// The step block: the small piece of memory that tells a replayed Program what this step is about.
//
// It holds everything that changes between replays: which rows are live, their tokens and positions, which
// sequence each belongs to, where that sequence's cache pages are, and how to sample. Kernels read it; the
// host or the Program's own last command writes it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/core/checked.h"

namespace refrain::ops {

/// Live counts.
struct StepHeader {
  uint32_t rows = 0;
  uint32_t sequences = 0;
  uint32_t outputs = 0;  ///< rows whose logits are wanted
  uint32_t reserved = 0;
};
static_assert(sizeof(StepHeader) == 16);

/// One token to be computed.
struct StepRow {
  uint32_t token = 0;
  uint32_t position = 0;  ///< in its sequence, from 0
  uint32_t sequence = 0;  ///< index into the sequences
  uint32_t sampled = 0;   ///< written by `sample`
};
static_assert(sizeof(StepRow) == 16);

struct StepSequence {
  uint32_t length = 0;      ///< positions cached after this step
  uint32_t first_page = 0;  ///< where this sequence's pages begin in the page table
  uint32_t top_k = 0;       ///< 0: off
  uint32_t pages = 0;       ///< entries of the page table that are this sequence's
  float temperature = 0;    ///< 0: the greatest logit, lower id first
  float top_p = 1;          ///< 1: off
  uint64_t seed = 0;
};
static_assert(sizeof(StepSequence) == 32);

/// Positions of one cache page: also the block of attention's reduction.
inline constexpr uint32_t kPagePositions = 64;

/// Where the parts lie, for a block of `rows` rows, `sequences` sequences and a page table of `pages`
/// entries.
struct StepLayout {
  uint32_t rows = 0;
  uint32_t sequences = 0;
  uint32_t pages = 0;

  size_t rows_offset_bytes() const { return sizeof(StepHeader); }
  size_t sequences_offset_bytes() const { return rows_offset_bytes() + rows * sizeof(StepRow); }
  size_t outputs_offset_bytes() const { return sequences_offset_bytes() + sequences * sizeof(StepSequence); }
  size_t page_table_offset_bytes() const {
    return outputs_offset_bytes() + align_up(rows * sizeof(uint32_t), 16);
  }
  size_t bytes() const { return page_table_offset_bytes() + pages * sizeof(uint32_t); }
};

/// What a kernel found wrong in values that it read from memory, one word a sequence; one more word, the
/// last, for rows whose sequence itself is out of range. The row's outputs are zeros and caches are left
/// untouched.
enum StatusBit : uint32_t {
  kTokenOutOfRange = 1,
  kPositionOutOfRange = 2,  ///< at or past the sequence's length, or past its pages
  kPageOutOfRange = 4,
  kSequenceOutOfRange = 8,
  kOutputOutOfRange = 16,  ///< a wanted row that is not live
  kNotFinite = 32,         ///< the sampled token's logit is not a finite number
};

/// The cache of one layer, f32 [2 (keys, values)][pages][kv_heads][kPagePositions][head_dim].
struct CacheGeometry {
  uint32_t pages = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;

  /// Elements from the start of the layer to the unit of (kind: 0 keys, 1 values; page; kv_head).
  size_t unit_offset(uint32_t kind, uint32_t page, uint32_t kv_head) const {
    return ((static_cast<size_t>(kind) * pages + page) * kv_heads + kv_head) * kPagePositions * head_dim;
  }
  size_t elements() const { return size_t{2} * pages * kv_heads * kPagePositions * head_dim; }
};

}  // namespace refrain::ops
