// The order of commands while some of them become one: what the fuse pass asks before it forms a group.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/graph/hazards.h"

namespace refrain::graph {

/// Who must come before and after whom, where some commands are already one.
class Contraction {
 public:
  Contraction(const Order& order, size_t count)
      : words_((count + 63) / 64), before_(count * words_), after_(count * words_) {
    for (uint32_t i = 0; i < count; ++i) each_dep(order, i, [&](uint32_t dep) { add(before_, i, dep); });
    for (auto i = static_cast<uint32_t>(count); i-- > 0;)
      each_dep(order, i, [&](uint32_t dep) { add(after_, dep, i); });
  }

  /// A command outside of `group` that follows one of its members and precedes another; device::kNone: there
  /// is none.
  uint32_t between(const std::vector<uint32_t>& group) const {
    for (size_t w = 0; w < words_; ++w) {
      uint64_t before = 0, after = 0, own = 0;
      for (const uint32_t member : group) {
        before |= before_[member * words_ + w];
        after |= after_[member * words_ + w];
        if (member / 64 == w) own |= uint64_t{1} << (member % 64);
      }
      const uint64_t found = before & after & ~own;
      if (found != 0) return static_cast<uint32_t>(w * 64 + static_cast<size_t>(std::countr_zero(found)));
    }
    return device::kNone;
  }

  /// From here on the group is one command: who precedes or follows a member does so of all of it.
  void contract(const std::vector<uint32_t>& group) {
    std::vector<uint64_t> before = united(before_, group), after = united(after_, group);
    each_bit(after, [&](size_t i) { merge(before_, i, before); });
    each_bit(before, [&](size_t i) { merge(after_, i, after); });
  }

 private:
  template <class Each>
  static void each_dep(const Order& order, uint32_t command, Each each) {
    const device::Range& deps = order.deps_of[command];
    for (uint32_t d = deps.first; d < deps.first + deps.count; ++d) each(order.deps[d]);
  }
  void add(std::vector<uint64_t>& rows, size_t to, size_t from) const {
    for (size_t w = 0; w < words_; ++w) rows[to * words_ + w] |= rows[from * words_ + w];
    rows[to * words_ + from / 64] |= uint64_t{1} << (from % 64);
  }
  std::vector<uint64_t> united(const std::vector<uint64_t>& rows, const std::vector<uint32_t>& group) const {
    std::vector<uint64_t> row(words_);
    for (const uint32_t member : group) {
      for (size_t w = 0; w < words_; ++w) row[w] |= rows[member * words_ + w];
      row[member / 64] |= uint64_t{1} << (member % 64);
    }
    return row;
  }
  void merge(std::vector<uint64_t>& rows, size_t to, const std::vector<uint64_t>& row) const {
    for (size_t w = 0; w < words_; ++w) rows[to * words_ + w] |= row[w];
  }
  template <class Each>
  static void each_bit(const std::vector<uint64_t>& row, Each each) {
    for (size_t w = 0; w < row.size(); ++w) {
      for (uint64_t bits = row[w]; bits != 0; bits &= bits - 1)
        each(w * 64 + static_cast<size_t>(std::countr_zero(bits)));
    }
  }

  size_t words_;
  std::vector<uint64_t> before_, after_;
};

}  // namespace refrain::graph
