// Rows, page table and status words of a step as plain memory for the tests of ops that read them: slots with
// shuffled cache pages, rows at chosen positions.
//
// Only for *_test.cpp.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops::harness {

/// Slots of the given lengths. Their pages are a random choice among `cache_pages`, in random order; entries that a
/// slot has no page for are no page.
struct TestStep {
  using Position = std::pair<uint32_t, uint32_t>;  // slot, position

  TestStep(const std::vector<uint32_t>& slot_lengths, const std::vector<Position>& positions,
           uint32_t row_capacity, Random& random)
      : lengths(slot_lengths), rows(row_capacity), status(lengths.size() + 1) {
    uint32_t used = 0;
    for (const uint32_t length : lengths) {
      const uint32_t pages = ceil_div(length, kPagePositions);
      used += pages;
      pages_per_slot = std::max(pages_per_slot, pages);
    }
    cache_pages = used + 3;
    std::vector<uint32_t> ids(cache_pages);
    std::iota(ids.begin(), ids.end(), 0u);
    for (size_t i = ids.size(); i > 1; --i)
      std::swap(ids[i - 1], ids[random.below(static_cast<uint32_t>(i))]);
    page_table = Array<uint32_t>(lengths.size() * pages_per_slot, 0xFFFFFFFF);
    uint32_t next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (uint32_t page = 0; page < ceil_div(lengths[s], kPagePositions); ++page)
        page_table[s * pages_per_slot + page] = ids[next++];
    }
    for (StepRow& row : rows) row = {0xDEAD, 0xFFFFFFFE, 0xFFFFFFFE, 0xBEEF};
    for (size_t r = 0; r < positions.size(); ++r) {
      rows[r] = {random.next(), positions[r].second, positions[r].first, 0};
    }
  }

  Shape rows_shape() const { return {static_cast<int64_t>(rows.size()), 4}; }
  Shape table_shape() const { return {static_cast<int64_t>(lengths.size()), pages_per_slot}; }
  Shape status_shape() const { return {static_cast<int64_t>(status.size())}; }
  Shape cache_shape(uint32_t kv_heads, uint32_t head_dim) const {
    return {2, cache_pages, kv_heads, kPagePositions, head_dim};
  }
  size_t cache_elements(uint32_t kv_heads, uint32_t head_dim) const {
    return CacheGeometry{cache_pages, kv_heads, head_dim}.elements();
  }
  uint32_t slots() const { return static_cast<uint32_t>(lengths.size()); }
  /// The entry of the page table for a position.
  uint32_t& page(uint32_t slot, uint32_t position) {
    return page_table[size_t{slot} * pages_per_slot + position / kPagePositions];
  }
  uint32_t page(uint32_t slot, uint32_t position) const {
    return page_table[size_t{slot} * pages_per_slot + position / kPagePositions];
  }

  std::vector<uint32_t> lengths;
  uint32_t cache_pages = 0;
  uint32_t pages_per_slot = 0;
  Array<StepRow> rows;
  Array<uint32_t> page_table{0};
  Array<uint32_t> status;
};

/// A row that names what is not there, and what the status words then say.
struct HostileRow {
  StepRow row;
  uint32_t word;  ///< of the status; UINT32_MAX: the last
  uint32_t bits;
};

/// Such rows for a step of two slots of 130 and 64 positions.
inline std::vector<HostileRow> hostile_rows() {
  return {
      {{0, 0, 2, 0}, UINT32_MAX, kSlotOutOfRange}, {{0, 0, 0xFFFFFFFE, 0}, UINT32_MAX, kSlotOutOfRange},
      {{0, 192, 0, 0}, 0, kPositionOutOfRange},    {{0, 0xFFFFFFFF, 0, 0}, 0, kPositionOutOfRange},
      {{0, 64, 1, 0}, 1, kPageOutOfRange},         {{0, 0xFFFFFFFF, 1, 0}, 1, kPositionOutOfRange},
      {{0, 0xFFFFFFFF, kIdle, 0}, UINT32_MAX, 0},
  };
}

}  // namespace refrain::ops::harness
