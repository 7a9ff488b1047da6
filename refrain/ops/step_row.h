// What kernels do with the untrusted values of a step: bound them, find cache pages, raise status bits.
// Includes nothing of a backend; every function is safe for any content of the memory it reads.
#pragma once

#include <atomic>
#include <cstdint>

#include "refrain/core/host_device.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

/// ORs `bits` into a status word; other workers may do so at the same time.
REFRAIN_HD inline void raise_status(uint32_t* status, uint32_t word, uint32_t bits) {
  if (bits == 0) return;
#if defined(__CUDA_ARCH__)
  atomicOr(status + word, bits);
#else
  std::atomic_ref<uint32_t>(status[word]).fetch_or(bits, std::memory_order_relaxed);
#endif
}

/// The pages of a cache group that slots may name.
struct PageTable {
  const uint32_t* ids = nullptr;  ///< [slots, pages_per_slot]
  uint32_t slots = 0;
  uint32_t pages_per_slot = 0;
  uint32_t cache_pages = 0;
};

/// A row after checking: where its slot's pages begin, or what is wrong with it.
struct CheckedRow {
  uint32_t position = 0;
  const uint32_t* pages = nullptr;  ///< the slot's page ids; null: the row is idle or refused
  uint32_t status_word = 0;
  uint32_t status_bits = 0;  ///< 0: nothing is wrong
};

/// Checks slot and position of a row, and the page ids of positions from `first_position` to its own.
REFRAIN_HD inline CheckedRow check_row(const StepRow& row, const PageTable& table, uint32_t first_position) {
  CheckedRow checked;
  checked.position = row.position;
  if (row.slot == kIdle) return checked;
  if (row.slot >= table.slots) {
    checked.status_word = table.slots;
    checked.status_bits = kSlotOutOfRange;
    return checked;
  }
  checked.status_word = row.slot;
  const uint32_t last_page = row.position / kPagePositions;
  if (last_page >= table.pages_per_slot) {
    checked.status_bits = kPositionOutOfRange;
    return checked;
  }
  const uint32_t* pages = table.ids + size_t{row.slot} * table.pages_per_slot;
  for (uint32_t page = first_position / kPagePositions; page <= last_page; ++page) {
    if (pages[page] >= table.cache_pages) {
      checked.status_bits = kPageOutOfRange;
      return checked;
    }
  }
  checked.pages = pages;
  return checked;
}

}  // namespace refrain::ops
