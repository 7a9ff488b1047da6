// What a whole plan reads and writes, small enough to order submissions of different queues by. Not the order
// within a plan, which graph/hazards derives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/device/plan.h"

namespace refrain::graph {

/// The bytes of a plan. Bytes that are both read and written count as written, which loses nothing: a write
/// conflicts with all that a read conflicts with.
struct AccessSummary {
  struct Entry {
    uint64_t allocation = 0;  ///< its id
    size_t begin = 0;
    size_t end = 0;
    bool write = false;

    bool operator==(const Entry&) const = default;
  };
  std::vector<Entry> entries;  ///< by allocation, then begin; disjoint, touching ones differ in `write`
};

/// Exact and without the arena, unless its memory is given: an arena that two queues share is then written
/// memory like any other. Status words are left out. O(n log n).
AccessSummary summarize(const device::Plan& plan, const device::BufferView& arena = {});

/// The union of both; for what a submission writes beside its plan, or for several plans in a row.
AccessSummary merge(const AccessSummary& a, const AccessSummary& b);

/// `view` alone.
AccessSummary summarize(const device::BufferView& view, bool write);

/// True when the two share a byte that at least one of them writes: the later must wait for the earlier.
/// O(n + m).
bool conflicts(const AccessSummary& a, const AccessSummary& b);

}  // namespace refrain::graph
