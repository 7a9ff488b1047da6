#include "refrain/device/undefined.h"

#include <algorithm>
#include <iterator>

namespace refrain {
namespace {

// The first mark that ends behind `begin`.
template <class Marks>
auto first_behind(Marks& marks, uint64_t allocation, size_t begin) {
  auto mark = marks.lower_bound({allocation, begin});
  if (mark != marks.begin()) {
    const auto before = std::prev(mark);
    if (before->first.first == allocation && before->second.end > begin) return before;
  }
  return mark;
}

}  // namespace

// A mark that reaches over `at` becomes two.
void Undefined::cut(uint64_t allocation, size_t at) {
  const auto mark = first_behind(marks_, allocation, at);
  if (mark == marks_.end() || mark->first.first != allocation || mark->first.second >= at) return;
  marks_.emplace(Key{allocation, at}, mark->second);
  mark->second.end = at;
}

void Undefined::add(const Range& range, uint64_t place, const Failure& failure) {
  if (range.begin >= range.end) return;
  const std::lock_guard lock(mutex_);
  any_.store(true, std::memory_order_release);
  cut(range.allocation, range.begin);
  cut(range.allocation, range.end);
  for (size_t begin = range.begin; begin < range.end;) {
    const auto mark = marks_.lower_bound({range.allocation, begin});
    const bool within =
        mark != marks_.end() && mark->first.first == range.allocation && mark->first.second < range.end;
    const size_t next = within ? mark->first.second : range.end;
    if (begin < next) marks_.emplace(Key{range.allocation, begin}, Mark{next, place, place, failure});
    if (!within) return;
    Mark& known = mark->second;
    known.last = std::max(known.last, place);
    if (place < known.first) {
      known.first = place;
      known.failure = failure;
    }
    begin = known.end;
  }
}

void Undefined::clear(const Range& range, uint64_t place) {
  if (!any()) return;
  const std::lock_guard lock(mutex_);
  cut(range.allocation, range.begin);
  cut(range.allocation, range.end);
  auto mark = marks_.lower_bound({range.allocation, range.begin});
  while (mark != marks_.end() && mark->first.first == range.allocation && mark->first.second < range.end) {
    Mark& known = mark->second;
    if (known.last < place) {
      mark = marks_.erase(mark);
      continue;
    }
    if (known.first < place) known.first = known.last;  // of those between the two nothing is known
    ++mark;
  }
  if (marks_.empty() && !all_) any_.store(false, std::memory_order_release);
}

void Undefined::forget(uint64_t allocation) noexcept {
  if (!any()) return;
  const std::lock_guard lock(mutex_);
  marks_.erase(marks_.lower_bound({allocation, 0}), marks_.upper_bound({allocation, SIZE_MAX}));
  if (marks_.empty() && !all_) any_.store(false, std::memory_order_release);
}

Undefined::First Undefined::find(const Range& range, uint64_t place) const noexcept {
  if (!any() || range.begin >= range.end) return {};
  const std::lock_guard lock(mutex_);
  if (all_) return {unsaid_, 0};
  const Mark* found = nullptr;
  for (auto mark = first_behind(marks_, range.allocation, range.begin);
       mark != marks_.end() && mark->first.first == range.allocation && mark->first.second < range.end;
       ++mark) {
    if (mark->second.first < place && (found == nullptr || mark->second.first < found->first))
      found = &mark->second;
  }
  return found == nullptr ? First{} : First{found->failure, found->first};
}

void Undefined::give_up() noexcept {
  const std::lock_guard lock(mutex_);
  all_ = true;
  any_.store(true, std::memory_order_release);
}

}  // namespace refrain
