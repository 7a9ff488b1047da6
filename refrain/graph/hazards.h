// Pass: which commands truly depend on which. Derived from what commands read and write, never from hints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "refrain/device/plan.h"

namespace refrain::graph {

/// Bytes [begin, end) of one memory, read or written. Memories with different ids never overlap.
struct RangeAccess {
  uint64_t memory = 0;
  size_t begin = 0;
  size_t end = 0;
  bool write = false;
};

/// What each command touches, in recorded order.
struct AccessList {
  struct Entry {
    device::Range ranges;  ///< into `ranges`
    bool fence = false;
  };
  std::vector<Entry> commands;
  std::vector<RangeAccess> ranges;
};

/// A set of pairs (later, earlier) of commands: one row of bits a command.
class Reachability {
 public:
  explicit Reachability(size_t commands = 0) : words_((commands + 63) / 64), bits_(commands * words_) {}
  bool reaches(size_t later, size_t earlier) const {
    return (bits_[later * words_ + earlier / 64] >> (earlier % 64) & 1) != 0;
  }
  /// `later` now reaches `earlier` and all that `earlier` reaches.
  void add(size_t later, size_t earlier) {
    for (size_t w = 0; w <= earlier / 64; ++w) bits_[later * words_ + w] |= bits_[earlier * words_ + w];
    bits_[later * words_ + earlier / 64] |= uint64_t{1} << (earlier % 64);
  }

 private:
  size_t words_;
  std::vector<uint64_t> bits_;
};

/// The order that the accesses ask for.
struct Order {
  std::vector<device::Range> deps_of;  ///< of each command, into `deps`
  std::vector<uint32_t> deps;    ///< transitive reduction, each command's ascending: every edge is necessary
  std::vector<uint32_t> levels;  ///< 1 + the greatest level of the deps; a fence: that greatest level
  Reachability before;           ///< transitive closure
  size_t conflicts = 0;          ///< edges before the reduction, fences excluded
};

/// Read after write, write after read and write after write on overlapping bytes; a fence follows everything
/// before it and precedes everything after it. O(accesses * log) plus O(commands^2 / 64) for the reduction.
Order derive_order(const AccessList& accesses);

}  // namespace refrain::graph
