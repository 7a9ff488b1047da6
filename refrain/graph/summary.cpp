#include "refrain/graph/summary.h"

#include <algorithm>
#include <tuple>

namespace refrain::graph {
namespace {

using Entry = AccessSummary::Entry;

bool before(const Entry& a, const Entry& b) {
  return std::tie(a.allocation, a.begin) < std::tie(b.allocation, b.begin);
}

/// Sorted entries of one kind, joined where they overlap or touch.
std::vector<Entry> joined(std::vector<Entry> entries) {
  std::ranges::sort(entries, before);
  std::vector<Entry> result;
  for (const Entry& entry : entries) {
    if (!result.empty() && result.back().allocation == entry.allocation && entry.begin <= result.back().end) {
      result.back().end = std::max(result.back().end, entry.end);
    } else {
      result.push_back(entry);
    }
  }
  return result;
}

/// Reads without the bytes that are also written, and all writes.
AccessSummary combined(std::vector<Entry> entries) {
  std::erase_if(entries, [](const Entry& entry) { return entry.begin >= entry.end; });
  const auto middle = std::ranges::partition(entries, &Entry::write).begin();
  const std::vector<Entry> writes = joined({entries.begin(), middle});
  const std::vector<Entry> reads = joined({middle, entries.end()});
  AccessSummary summary;
  auto write = writes.begin();
  for (Entry read : reads) {
    for (; write != writes.end() && before(*write, read); ++write) {
      summary.entries.push_back(*write);
    }
    // The write before this read may reach into it; the ones that begin inside it cut it.
    if (write != writes.begin() && std::prev(write)->allocation == read.allocation) {
      read.begin = std::max(read.begin, std::prev(write)->end);
    }
    for (; write != writes.end() && write->allocation == read.allocation && write->begin < read.end;
         ++write) {
      if (read.begin < write->begin)
        summary.entries.push_back({read.allocation, read.begin, write->begin, false});
      summary.entries.push_back(*write);
      read.begin = write->end;
    }
    if (read.begin < read.end) summary.entries.push_back(read);
  }
  summary.entries.insert(summary.entries.end(), write, writes.end());
  return summary;
}

}  // namespace

AccessSummary summarize(const backend::PlanData& plan, const backend::BufferView& arena) {
  std::vector<Entry> entries;
  bool unknown = false;
  for (const backend::PlanCommand& command : plan.commands) {
    unknown = unknown || (command.kernel != nullptr && command.kernel->op->unknown_access);
    for (uint32_t a = command.args.first; a < command.args.first + command.args.count; ++a) {
      const backend::Argument& arg = plan.args[a];
      if (arg.access == backend::Access::status || arg.view.allocation == nullptr) continue;
      entries.push_back({arg.view.allocation->id, arg.view.offset_bytes,
                         arg.view.offset_bytes + arg.view.bytes, arg.access != backend::Access::in});
    }
  }
  if (arena.allocation != nullptr) {
    // Whatever is read of the arena has been written there before, so it is written as a whole.
    entries.push_back(
        {arena.allocation->id, arena.offset_bytes, arena.offset_bytes + plan.arena_bytes, true});
  }
  AccessSummary summary = combined(std::move(entries));
  summary.unknown = unknown;
  return summary;
}

bool conflicts(const AccessSummary& a, const AccessSummary& b) {
  if (a.unknown || b.unknown) return true;
  auto x = a.entries.begin();
  auto y = b.entries.begin();
  while (x != a.entries.end() && y != b.entries.end()) {
    if (x->allocation == y->allocation && (x->write || y->write) && x->begin < y->end && y->begin < x->end) {
      return true;
    }
    // The one that ends first meets nothing further on.
    if (std::tie(x->allocation, x->end) <= std::tie(y->allocation, y->end)) {
      ++x;
    } else {
      ++y;
    }
  }
  return false;
}

}  // namespace refrain::graph
