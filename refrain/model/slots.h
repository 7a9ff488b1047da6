// What lives as long as a sequence, in memory of the device that the programs of all capacities share: the table
// of slots, page tables, masks, stop sets, status words, and the ring of results. The host sends changes only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/model/kv_cache.h"
#include "refrain/ops/step_block.h"

namespace refrain::model {

using ops::Slot;
using ops::StepResult;

struct SlotsLayout {
  uint32_t slots = 1;
  uint32_t masks = 0;
  uint32_t mask_words = 0;  ///< of each mask: ceil(vocab / 32)
  uint32_t stop_sets = 0;
  uint32_t ring_entries = 64;  ///< a power of two
};

/// Buffers for ops to bind, and the host's half of them. One thread at a time.
class Slots {
 public:
  /// A page table for each group of `cache`, in which slot s has the pages [s * pages_per_slot, (s + 1) *
  /// pages_per_slot) until told otherwise.
  Slots(Device& device, const SlotsLayout& layout, const KvCache& cache);
  Slots(Slots&&) = default;  // a copy would write the same tables

  const Buffer& table() const { return tables_[kSlots].buffer; }         ///< u32 [slots, 16]
  const Buffer& masks() const { return tables_[kMasks].buffer; }         ///< u32 [masks, words], or none
  const Buffer& stop_sets() const { return tables_[kStopSets].buffer; }  ///< u32 [stop sets, 16], or none
  /// u32 [slots, pages_per_slot], of a cache group.
  const Buffer& page_table(uint32_t group) const { return tables_[kPageTables + group].buffer; }
  const Buffer& status() const { return status_; }  ///< u32 [slots + 1]
  const Buffer& ring() const { return ring_; }      ///< u32 [4 + 4 entries], in memory of the host

  // Changes, which pending() collects. Each throws InvalidArgument for what is not in its table.
  void set(uint32_t slot, const Slot& value);
  void set_pages(uint32_t group, uint32_t slot, uint32_t first, std::span<const uint32_t> pages);
  void set_mask(uint32_t index, std::span<const uint32_t> words);
  void set_stop_set(uint32_t index, std::span<const uint32_t> ids);
  /// Appends the changes since the last call, to be sent with the next submission: each is copied by then.
  void take_pending(std::vector<Update>& updates);

  // The ring, as far as the device has filled it; it may fill it further meanwhile.
  uint32_t appended() const;
  uint32_t steps() const;
  /// Entry `index` modulo the entries, one of the last of them.
  StepResult result(uint32_t index) const;
  uint32_t ring_entries() const { return layout_.ring_entries; }
  uint32_t size() const { return layout_.slots; }

 private:
  enum : size_t { kSlots, kMasks, kStopSets, kPageTables };

  /// Rows of words on the device, and what the host has last written there.
  struct Table {
    const char* what = "";
    Buffer buffer;  // none when there are no rows
    uint32_t rows = 0;
    uint32_t row_words = 0;
    std::vector<uint32_t> host;
  };
  struct Change {
    size_t table = 0;
    size_t begin = 0, end = 0;  // words
  };
  void add_table(Device& device, const char* what, uint32_t rows, uint32_t row_words, uint32_t value);
  void write(size_t table, uint32_t row, uint32_t first, std::span<const uint32_t> words);

  SlotsLayout layout_;
  uint32_t groups_ = 0;
  uint32_t pages_ = 0;  // of each group
  std::vector<Table> tables_;
  std::vector<Change> changes_;
  Buffer status_, ring_;
  uint32_t* ring_words_ = nullptr;  // read while the device writes, hence not as a checked span
};

}  // namespace refrain::model
