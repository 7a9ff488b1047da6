#include "refrain/model/slots.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <numeric>

#include "refrain/core/error.h"

namespace refrain::model {
namespace {

constexpr uint32_t kSlotWords = sizeof(Slot) / sizeof(uint32_t);

void check_below(const char* what, size_t limit, size_t got) {
  if (got >= limit)
    throw InvalidArgument(fmt::format("[slots] {}: expected below {}, got {}", what, limit, got));
}

uint32_t load(uint32_t& word) { return std::atomic_ref<uint32_t>(word).load(std::memory_order_acquire); }

}  // namespace

Slots::Slots(Device& device, const SlotsLayout& layout, const KvCache& cache)
    : layout_(layout), groups_(static_cast<uint32_t>(cache.groups().size())), pages_(cache.pages()) {
  tables_.reserve(kPageTables + groups_);
  add_table(device, "slot", layout.slots, kSlotWords, 0);
  add_table(device, "mask", layout.masks, layout.mask_words, ~0u);
  add_table(device, "stop set", layout.stop_sets, ops::kStopIds, ops::kNoToken);
  for (uint32_t g = 0; g < groups_; ++g)
    add_table(device, "page table", layout.slots, cache.pages_per_slot(), 0);
  for (uint32_t s = 0; s < layout.slots; ++s) {
    set(s, {});
    for (uint32_t g = 0; g < groups_; ++g) {
      std::vector<uint32_t> pages(cache.pages_per_slot());
      std::iota(pages.begin(), pages.end(), s * cache.pages_per_slot());
      set_pages(g, s, 0, pages);
    }
  }
  for (const Table& table : tables_) {
    if (table.rows != 0) device.write(table.buffer, table.host);
  }
  changes_.clear();
  changes_.reserve(64);
  status_ = device.buffer(DType::u32, {int64_t{layout.slots} + 1}, "status");
  ring_ = device.buffer(DType::u32, {4 + 4 * int64_t{layout.ring_entries}}, "results", MemoryKind::host);
  ring_words_ = ring_.span<uint32_t>().data();
}

void Slots::add_table(Device& device, const char* what, uint32_t rows, uint32_t row_words, uint32_t value) {
  Table table{what, {}, rows, row_words, std::vector<uint32_t>(size_t{rows} * row_words, value)};
  if (rows != 0) table.buffer = device.buffer(DType::u32, {rows, row_words}, what);
  tables_.push_back(std::move(table));
}

void Slots::write(size_t index, uint32_t row, uint32_t first, std::span<const uint32_t> words) {
  Table& table = tables_[index];
  check_below(table.what, table.rows, row);
  if (first > table.row_words || words.size() > table.row_words - first) {
    throw InvalidArgument(fmt::format("[slots] {} {}: expected at most {} words, got {}", table.what, row,
                                      table.row_words, first + words.size()));
  }
  const size_t begin = size_t{row} * table.row_words + first;
  std::ranges::copy(words, table.host.begin() + static_cast<ptrdiff_t>(begin));
  if (!changes_.empty() && changes_.back().table == index && changes_.back().end == begin) {
    changes_.back().end += words.size();
  } else if (!words.empty()) {
    changes_.push_back({index, begin, begin + words.size()});
  }
}

void Slots::set(uint32_t slot, const Slot& value) {
  if (value.mask != ops::kNoTable) check_below("mask", layout_.masks, value.mask);
  if (value.stop_set != ops::kNoTable) check_below("stop set", layout_.stop_sets, value.stop_set);
  write(kSlots, slot, 0, std::bit_cast<std::array<uint32_t, kSlotWords>>(value));
}

void Slots::set_pages(uint32_t group, uint32_t slot, uint32_t first, std::span<const uint32_t> pages) {
  check_below("cache group", groups_, group);
  for (const uint32_t page : pages) check_below("page", pages_, page);
  write(kPageTables + group, slot, first, pages);
}

void Slots::set_mask(uint32_t index, std::span<const uint32_t> words) {
  if (words.size() != layout_.mask_words) {
    throw InvalidArgument(
        fmt::format("[slots] mask {}: expected {} words, got {}", index, layout_.mask_words, words.size()));
  }
  write(kMasks, index, 0, words);
}

void Slots::set_stop_set(uint32_t index, std::span<const uint32_t> ids) {
  if (ids.size() > ops::kStopIds) {
    throw InvalidArgument(fmt::format("[slots] stop set {}: expected at most {} ids, got {}", index,
                                      ops::kStopIds, ids.size()));
  }
  std::array<uint32_t, ops::kStopIds> words;
  words.fill(ops::kNoToken);
  std::ranges::copy(ids, words.begin());
  write(kStopSets, index, 0, words);
}

void Slots::take_pending(std::vector<Update>& updates) {
  for (const Change& change : changes_) {
    const Table& table = tables_[change.table];
    const size_t words = change.end - change.begin;
    updates.push_back(
        {table.buffer.view(DType::u32, {static_cast<int64_t>(words)}, change.begin * sizeof(uint32_t)),
         std::as_bytes(std::span(table.host).subspan(change.begin, words))});
  }
  changes_.clear();
}

uint32_t Slots::appended() const { return load(ring_words_[offsetof(ops::RingHeader, appended) / 4]); }

uint32_t Slots::steps() const { return load(ring_words_[offsetof(ops::RingHeader, steps) / 4]); }

StepResult Slots::result(uint32_t index) const {
  const uint32_t* entry = ring_words_ + 4 + 4 * size_t{index % layout_.ring_entries};
  return {entry[0], entry[1], entry[2], entry[3]};
}

}  // namespace refrain::model
