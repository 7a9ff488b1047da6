#include "refrain/backend/cpu/residency.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "refrain/core/checked.h"

namespace refrain::backend::cpu {
namespace {

constexpr size_t kPagesAtOnce = 4096;  // asked for in one call

uintptr_t page_bytes() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

void LockedPages::lock(uintptr_t begin, uintptr_t end) {
  const uintptr_t page = page_bytes();
  begin = align_up(begin, page);
  end &= ~(page - 1);
  uintptr_t most =
      end > begin ? end - begin : 0;  // halved by each refusal: what is granted ends at the limit
  while (begin < end && most != 0) {
    // The gap before the next range that is locked already.
    auto next = ranges_.upper_bound(begin);
    if (next != ranges_.begin() && std::prev(next)->second > begin) {
      begin = std::prev(next)->second;
      continue;
    }
    const uintptr_t gap_end = next == ranges_.end() ? end : std::min(end, next->first);
    const uintptr_t part = std::min(most, gap_end - begin);
    auto* address = reinterpret_cast<void*>(begin);
    if (mlock(address, part) == 0) {
      ranges_[begin] = begin + part;
      begin += part;
    } else {
      munlock(address, part);  // a refusal may leave pages beside the one that it is about locked
      most = part / 2 & ~(page - 1);
    }
  }
}

void LockedPages::unlock(uintptr_t begin, uintptr_t end) {
  const uintptr_t page = page_bytes();
  begin &= ~(page - 1);
  end = align_up(end, page);
  auto at = ranges_.upper_bound(begin);
  if (at != ranges_.begin() && std::prev(at)->second > begin) --at;
  while (at != ranges_.end() && at->first < end) {
    const auto [first, last] = *at;
    const uintptr_t from = std::max(first, begin), to = std::min(last, end);
    munlock(reinterpret_cast<void*>(from), to - from);
    at = ranges_.erase(at);
    if (first < from) ranges_[first] = from;
    if (to < last) at = ranges_.emplace(to, last).first;
  }
}

size_t LockedPages::bytes() const {
  size_t sum = 0;
  for (const auto& [begin, end] : ranges_) sum += end - begin;
  return sum;
}

void advise_range(void* address, size_t bytes, Advice advice, bool writable) {
  const uintptr_t page = page_bytes();
  const auto begin = reinterpret_cast<uintptr_t>(address) & ~(page - 1);
  const uintptr_t end = align_up(reinterpret_cast<uintptr_t>(address) + bytes, page);
  auto* first = reinterpret_cast<void*>(begin);
  if (advice == Advice::evictable) {
#if defined(MADV_COLD)
    madvise(first, end - begin, MADV_COLD);
#endif
    return;
  }
#if defined(MADV_POPULATE_READ) && defined(MADV_POPULATE_WRITE)
  if (madvise(first, end - begin, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) == 0) return;
#else
  (void)writable;
#endif
  madvise(first, end - begin, MADV_WILLNEED);
}

size_t resident_bytes(const void* address, size_t bytes) {
  const uintptr_t page = page_bytes();
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const uintptr_t end = begin + bytes;
  std::vector<unsigned char> pages(kPagesAtOnce);
  size_t sum = 0;
  for (uintptr_t at = begin & ~(page - 1); at < end;) {
    const uintptr_t part = std::min<uintptr_t>(kPagesAtOnce * page, align_up(end, page) - at);
    if (mincore(reinterpret_cast<void*>(at), part, pages.data()) != 0) return sum;
    for (size_t i = 0; i < part / page; ++i) {
      if ((pages[i] & 1u) != 0) {
        sum += std::min(at + (i + 1) * page, end) - std::max(at + i * page, begin);
      }
    }
    at += part;
  }
  return sum;
}

}  // namespace refrain::backend::cpu
