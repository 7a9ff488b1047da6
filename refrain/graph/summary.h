// What a whole plan reads and writes, small enough to order submissions of different queues by. Not the order
// within a plan, which graph/hazards derives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::graph {

/// The bytes of a plan. Bytes with several effects count as written, which loses nothing: a write conflicts with
/// everything, and so does a read together with an accumulation.
struct AccessSummary {
  struct Entry {
    uint64_t allocation = 0;  ///< its id
    size_t begin = 0;
    size_t end = 0;
    backend::Effect effect = backend::Effect::read;

    bool operator==(const Entry&) const = default;
  };
  std::vector<Entry> entries;  ///< by allocation, then begin; disjoint, touching ones differ in `effect`
  bool unknown = false;        ///< other bytes as well, any (OpSchema::unknown_access)
};

/// Exact and without the arena, unless its memory is given: an arena that two queues share is then written
/// memory like any other. O(n log n).
AccessSummary summarize(const backend::PlanData& plan, const backend::BufferView& arena = {});

/// What a plan needs of the bytes that it finds, and what it leaves of them, as far as arguments name them.
struct ValueSummary {
  std::vector<AccessSummary::Entry> reads;  ///< whose values it takes before it has written them whole
  std::vector<AccessSummary::Entry> whole;  ///< written, all of them, whatever they held
};

/// Both sorted and disjoint; their `effect` says nothing. An output of which a live count says how many rows are
/// written is not written whole, the arena is. An accumulation takes no value. O(n log n).
ValueSummary summarize_values(const backend::PlanData& plan, const backend::BufferView& arena = {});

/// True when the two share a byte on which their effects conflict, or may do so unknown: the later must wait
/// for the earlier. O(n + m).
bool conflicts(const AccessSummary& a, const AccessSummary& b);

}  // namespace refrain::graph
