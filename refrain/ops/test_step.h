// A step block as plain memory for the tests of ops that read one: sequences with shuffled cache pages, rows
// at chosen positions, status words.
//
// Only for *_test.cpp.
#pragma once

#include <numeric>
#include <utility>
#include <vector>

#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::ops::harness {

/// Sequences of the given lengths. Their pages are a random choice among `cache_pages`, in random order, and
/// begin at a random place of the page table.
struct TestStep {
  using Position = std::pair<uint32_t, uint32_t>;  // sequence, position

  TestStep(const std::vector<uint32_t>& lengths, const std::vector<Position>& positions,
           uint32_t row_capacity, Random& random)
      : rows(row_capacity), sequences(lengths.size()), status(lengths.size() + 1) {
    uint32_t used = 0;
    for (const uint32_t length : lengths) used += ceil_div(length, kPagePositions);
    cache_pages = used + 3;
    std::vector<uint32_t> ids(cache_pages);
    std::iota(ids.begin(), ids.end(), 0u);
    for (size_t i = ids.size(); i > 1; --i)
      std::swap(ids[i - 1], ids[random.below(static_cast<uint32_t>(i))]);
    const uint32_t lead = random.below(3);
    page_table = Array<uint32_t>(lead + used, 0);
    uint32_t next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      sequences[s].length = lengths[s];
      sequences[s].first_page = lead + next;
      sequences[s].pages = ceil_div(lengths[s], kPagePositions);
      for (uint32_t page = 0; page < ceil_div(lengths[s], kPagePositions); ++page, ++next) {
        page_table[lead + next] = ids[next];
      }
    }
    for (StepRow& row : rows) row = {0xDEAD, 0xFFFFFFFF, 0xFFFFFFFF, 0xBEEF};
    for (size_t r = 0; r < positions.size(); ++r) {
      rows[r] = {random.next(), positions[r].second, positions[r].first, 0};
    }
  }

  Shape rows_shape() const { return {static_cast<int64_t>(rows.size()), 4}; }
  Shape sequences_shape() const { return {static_cast<int64_t>(sequences.size()), 8}; }
  Shape table_shape() const { return {static_cast<int64_t>(page_table.size())}; }
  Shape status_shape() const { return {static_cast<int64_t>(status.size())}; }
  Shape cache_shape(uint32_t kv_heads, uint32_t head_dim) const {
    return {2, cache_pages, kv_heads, kPagePositions, head_dim};
  }
  size_t cache_elements(uint32_t kv_heads, uint32_t head_dim) const {
    return CacheGeometry{cache_pages, kv_heads, head_dim}.elements();
  }
  uint32_t sequence_capacity() const { return static_cast<uint32_t>(sequences.size()); }
  uint32_t table_entries() const { return static_cast<uint32_t>(page_table.size()); }

  uint32_t cache_pages = 0;
  Array<StepRow> rows;
  Array<StepSequence> sequences;
  Array<uint32_t> page_table{0};
  Array<uint32_t> status;
};

/// A row that names what is not there, and what the status words then say.
struct HostileRow {
  StepRow row;
  uint32_t word;  ///< of the status; UINT32_MAX: the last
  uint32_t bits;
};

/// Such rows for a step of two sequences of 130 and 64 positions.
inline std::vector<HostileRow> hostile_rows() {
  return {
      {{0, 0, 2, 0}, UINT32_MAX, kSequenceOutOfRange},
      {{0, 0, 0xFFFFFFFF, 0}, UINT32_MAX, kSequenceOutOfRange},
      {{0, 130, 0, 0}, 0, kPositionOutOfRange},
      {{0, 0xFFFFFFFF, 0, 0}, 0, kPositionOutOfRange},
      {{0, 64, 1, 0}, 1, kPositionOutOfRange},
  };
}

}  // namespace refrain::ops::harness
