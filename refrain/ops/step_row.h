// What kernels do with the untrusted values of a step block: bound them, find cache pages, raise status bits.
// Includes nothing of a backend; every function is safe for any content of the memory it reads.
#pragma once

#include <atomic>
#include <cstdint>

#include "refrain/ops/step_block.h"

namespace refrain::ops {

/// ORs `bits` into a status word; other workers may do so at the same time.
inline void raise_status(uint32_t* status, uint32_t word, uint32_t bits) {
  std::atomic_ref<uint32_t>(status[word]).fetch_or(bits, std::memory_order_relaxed);
}

/// The sequences and pages that a row may name.
struct StepTables {
  const StepSequence* sequences = nullptr;
  const uint32_t* page_table = nullptr;
  uint32_t sequence_capacity = 0;
  uint32_t page_table_entries = 0;
  uint32_t cache_pages = 0;
};

/// A row after checking: where its sequence's pages begin, or what is wrong with it.
struct CheckedRow {
  uint32_t position = 0;
  const uint32_t* pages = nullptr;  ///< the sequence's page ids; null: the row is refused
  uint32_t status_word = 0;
  uint32_t status_bits = 0;
};

/// Checks sequence and position of a row, and the page ids of positions from `first_position` to its own.
inline CheckedRow check_row(const StepRow& row, const StepTables& tables, uint32_t first_position) {
  CheckedRow checked;
  checked.position = row.position;
  if (row.sequence >= tables.sequence_capacity) {
    checked.status_word = tables.sequence_capacity;
    checked.status_bits = kSequenceOutOfRange;
    return checked;
  }
  checked.status_word = row.sequence;
  const StepSequence& sequence = tables.sequences[row.sequence];
  const uint32_t last_page = row.position / kPagePositions;
  if (row.position >= sequence.length || last_page >= sequence.pages ||
      uint64_t{sequence.first_page} + last_page >= tables.page_table_entries) {
    checked.status_bits = kPositionOutOfRange;
    return checked;
  }
  const uint32_t* pages = tables.page_table + sequence.first_page;
  for (uint32_t page = first_position / kPagePositions; page <= last_page; ++page) {
    if (pages[page] >= tables.cache_pages) {
      checked.status_bits = kPageOutOfRange;
      return checked;
    }
  }
  checked.pages = pages;
  return checked;
}

}  // namespace refrain::ops
