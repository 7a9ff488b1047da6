// The step: what the host tells a replayed Program of one step, what the Program makes of it, and what lives as
// long as a sequence.
//
// The host sends a *block*: header, requests, tokens, outputs, packed. A Program's first command resolves it
// against the table of slots into rows, segments and outputs, which kernels read; its last command moves the
// slots on and appends to the ring of results. A request that names no token goes on from its slot, so a
// Program can be replayed with nothing sent, until the slot stops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "refrain/core/checked.h"
#include "refrain/core/dtype.h"

namespace refrain::ops {

/// Slot of a row, segment or output that is not there: nothing is computed, and no status is raised.
inline constexpr uint32_t kIdle = 0xFFFFFFFF;
/// First token of a request: the slot's last one, from where the slot is, unless it has stopped.
inline constexpr uint32_t kLastToken = 0xFFFFFFFF;
/// Position of a request: the slot's length.
inline constexpr uint32_t kAtLength = 0xFFFFFFFF;
/// Version of the recurrent state that a request starts from: the slot's.
inline constexpr uint32_t kSlotState = 0xFFFFFFFF;
/// No token: nothing was drawn. In no vocabulary.
inline constexpr uint32_t kNoToken = 0xFFFFFFFF;
/// Mask or stop set of a slot: none.
inline constexpr uint32_t kNoTable = 0xFFFFFFFF;

/// Live counts: of a block, and of what it resolves to.
struct StepHeader {
  uint32_t rows = 0;
  uint32_t segments = 0;
  uint32_t outputs = 0;  ///< rows whose logits are wanted
  uint32_t reserved = 0;
};
static_assert(sizeof(StepHeader) == 16);

/// Sent: the next `rows` tokens of the block are of one slot, at consecutive positions.
struct StepRequest {
  uint32_t slot = kIdle;
  uint32_t rows = 0;
  uint32_t position = kAtLength;  ///< of the first; below the slot's length: takes back what lies behind
  uint32_t state_from = kSlotState;
};
static_assert(sizeof(StepRequest) == 16);

/// One token to be computed.
struct StepRow {
  uint32_t token = 0;
  uint32_t position = 0;        ///< in its sequence, from 0
  uint32_t slot = kIdle;        ///< whose pages it reads and writes
  uint32_t sampled = kNoToken;  ///< written by `sample`
};
static_assert(sizeof(StepRow) == 16);

/// The rows of one slot in this step.
struct StepSegment {
  uint32_t slot = kIdle;
  uint32_t first_row = 0;
  uint32_t rows = 0;  ///< 0: the slot has stopped, or its request was refused
  uint32_t state_from = 0;
};
static_assert(sizeof(StepSegment) == 16);

/// What is known of a sequence, from its first step to its last.
struct Slot {
  uint32_t length = 0;             ///< positions cached
  uint32_t limit = 0xFFFFFFFF;     ///< length at which it stops
  uint32_t last_token = kNoToken;  ///< drawn at the last position, not cached yet
  uint32_t stopped = 0;            ///< StopBits: not 0: rows that go on from it are idle
  uint32_t top_k = 0;              ///< 0: off
  uint32_t mask = kNoTable;        ///< of the table of masks: the ids that may be drawn; kNoTable: all
  uint32_t stop_set = kNoTable;    ///< of the table of stop sets: the ids that stop it
  uint32_t state_version = 0;      ///< of its recurrent state
  float temperature = 0;           ///< 0: the greatest logit, lower id first
  float top_p = 1;                 ///< 1: off
  uint32_t reserved[4] = {};       ///< 0; for further parameters of sampling
  uint64_t seed = 0;
};
static_assert(sizeof(Slot) == 64);

/// Why a slot has stopped; in StepResult::bits beside StatusBits.
enum StopBit : uint32_t {
  kStopId = 1u << 16,     ///< the token is in its stop set
  kStopLimit = 1u << 17,  ///< its limit, or the end of the context
  kStopError = 1u << 18,  ///< a StatusBit
};

/// One entry of the ring of results: what a step has made of a slot.
struct StepResult {
  uint32_t slot = kIdle;      ///< kIdle: the bits are of no slot
  uint32_t token = kNoToken;  ///< drawn after the segment's last row
  uint32_t length = 0;        ///< positions cached
  uint32_t bits = 0;          ///< StopBits and StatusBits
};
static_assert(sizeof(StepResult) == 16);

/// Before the entries of the ring. Both counts wrap; a reader acquires them before it reads entries.
struct RingHeader {
  uint32_t appended = 0;  ///< entries; entry i lies at i modulo the ring's entries, a power of two
  uint32_t steps = 0;     ///< that have ended
  uint32_t reserved[2] = {};
};
static_assert(sizeof(RingHeader) == 16);

/// Ids of one stop set; kNoToken where there is none.
inline constexpr uint32_t kStopIds = 16;

/// Positions of one cache page: also the block of attention's reduction.
inline constexpr uint32_t kPagePositions = 64;

/// Capacities of a Program.
struct StepLayout {
  uint32_t rows = 0;
  uint32_t segments = 0;
  uint32_t outputs = 0;

  /// Bytes of a block with these live counts: header, requests, tokens, outputs, nothing between them.
  static constexpr size_t block_bytes(size_t rows, size_t segments, size_t outputs) {
    return sizeof(StepHeader) + segments * sizeof(StepRequest) + (rows + outputs) * sizeof(uint32_t);
  }
  size_t block_bytes() const { return block_bytes(rows, segments, outputs); }
};

/// What a kernel found wrong in values that it read from memory, one word a slot; one more word, the last, for
/// rows whose slot itself is out of range. The row's outputs are zeros and caches are left untouched.
enum StatusBit : uint32_t {
  kTokenOutOfRange = 1,
  kPositionOutOfRange = 2,  ///< past the slot's length, its pages or the context
  kPageOutOfRange = 4,
  kSlotOutOfRange = 8,
  kOutputOutOfRange = 16,  ///< a wanted row that is not live
  kNotFinite = 32,         ///< the sampled token's logit is not a finite number
  kTableOutOfRange = 64,   ///< a mask or stop set that does not exist
};

/// Of a cache's elements; kernels compute in f32 whichever it is.
inline constexpr DTypes kCacheTypes = {DType::f32, DType::f16};

/// The cache of one layer, [2 (keys, values)][pages][kv_heads][kPagePositions][head_dim].
struct CacheGeometry {
  uint32_t pages = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;

  /// Elements from the start of the layer to the unit of (kind: 0 keys, 1 values; page; kv_head).
  constexpr size_t unit_offset(uint32_t kind, uint32_t page, uint32_t kv_head) const {
    return ((static_cast<size_t>(kind) * pages + page) * kv_heads + kv_head) * kPagePositions * head_dim;
  }
  constexpr size_t elements() const { return size_t{2} * pages * kv_heads * kPagePositions * head_dim; }
};

}  // namespace refrain::ops
