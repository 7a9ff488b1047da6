// Pass: which commands truly depend on which. Derived from what commands read and write, never from hints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "refrain/backend/plan.h"

namespace refrain::graph {

/// Bytes [begin, end) of one memory, and what happens to them. Memories with different ids never overlap.
struct RangeAccess {
  uint64_t memory = 0;
  size_t begin = 0;
  size_t end = 0;
  backend::Effect effect = backend::Effect::read;
};

/// What each command touches, in recorded order.
struct AccessList {
  struct Entry {
    backend::Range ranges;  ///< into `ranges`
    bool fence = false;
  };
  std::vector<Entry> commands;
  std::vector<RangeAccess> ranges;

  std::span<const RangeAccess> ranges_of(size_t command) const {
    return std::span(ranges).subspan(commands[command].ranges.first, commands[command].ranges.count);
  }
};

/// Direct dependencies of commands as they come, one by one: read after write, write after read and write
/// after write on overlapping bytes, exact for any views; accumulations are to each other as reads are, and to
/// all else as writes. Keeps, for each memory, disjoint segments with their last writer and, since then, the
/// last commands that commute (readers or accumulators) with those before them that do not. Commands are numbered from 0 in the order of their adding.
class HazardTracker {
 public:
  /// Makes room for this many of each; there may be more.
  explicit HazardTracker(size_t commands = 0, size_t ranges = 0);

  /// Adds a command. Returns the commands that it directly depends on, each once, in no particular order;
  /// valid until the next call. The last fence stands for all before it and is not among them.
  std::span<const uint32_t> add(std::span<const RangeAccess> ranges);
  /// Adds a fence, which forgets all that came before: a later command depends on the fence.
  void add_fence();
  /// Starts again at command 0; keeps its storage.
  void reset();

  uint32_t size() const { return count_; }
  uint32_t last_fence() const { return fence_; }  ///< backend::kNone: there is none

 private:
  // Commands are numbered from the last fence on, from 1; 0 is none.

  /// Lists of commands that commute grow at the head only and are never changed, so pieces of a segment share
  /// them.
  struct Sharer {
    uint32_t command = 0;
    uint32_t next = backend::kNone;
  };
  /// Bytes from `begin` to the next segment, the last one's without end.
  struct Segment {
    size_t begin = 0;
    uint32_t writer = 0;
    uint32_t sharers = backend::kNone;  ///< since the writer: the last that commute; into sharers_
    uint32_t before = backend::kNone;   ///< the sharers before those, of the other effect
    bool accumulated = false;           ///< by the sharers; else they read
  };
  struct Memory {
    uint64_t id = 0;
    uint64_t epoch = 0;             ///< of the segments; of an older one they are void
    size_t next = 0;                ///< where the next access is likely
    std::vector<Segment> segments;  ///< ascending, the first begins at 0
  };
  /// The dependencies of a command, each once.
  struct Found {
    uint32_t self;
    uint32_t* deps;
    uint32_t* seen;
    size_t count;
    void add(uint32_t command) {  // without a branch: whether it is new cannot be foretold
      deps[count] = command;
      count += seen[command] != self;
      seen[command] = self;
    }
  };

  Memory& find(uint64_t id);
  Memory& insert(uint64_t id);
  void grow();
  static size_t segment_at(const std::vector<Segment>& segments, size_t hint, size_t at);
  void touch(Segment& segment, backend::Effect effect, Found& found);
  void cut(Memory& memory, size_t first, const RangeAccess& range, Found& found);

  std::vector<Memory> memories_;
  std::vector<uint32_t> table_;  ///< open addressing over memories_ by id; a power of two, at most half full
  std::vector<Sharer> sharers_;
  std::vector<uint32_t> seen_;  ///< of each command since the fence: the last one found to depend on it
  std::vector<uint32_t> deps_;
  uint64_t epoch_ = 1;
  uint32_t count_ = 0;
  uint32_t fence_ = backend::kNone;
};

/// A set of pairs (later, earlier) of commands: for each command a row of bits, of those before it.
class Reachability {
 public:
  explicit Reachability(size_t commands = 0) : bits_(begin_of(commands)) {}
  bool reaches(size_t later, size_t earlier) const {
    return earlier < later && (row(later)[earlier / 64] >> (earlier % 64) & 1) != 0;
  }
  /// `later` now reaches `earlier` and all that `earlier` reaches.
  void add(size_t later, size_t earlier) {
    uint64_t* const to = bits_.data() + begin_of(later);
    const uint64_t* const from = row(earlier);
    for (size_t w = 0; w <= earlier / 64; ++w) to[w] |= from[w];
    to[earlier / 64] |= uint64_t{1} << (earlier % 64);
  }
  /// Bit j % 64 of word j / 64, up to word later / 64: reaches(later, j).
  const uint64_t* row(size_t later) const { return bits_.data() + begin_of(later); }

 private:
  /// Rows of i / 64 + 1 words before that of `command`.
  static size_t begin_of(size_t command) {
    const size_t words = command / 64 + 1;
    return 32 * words * (words - 1) + command % 64 * words;
  }
  std::vector<uint64_t> bits_;
};

/// The order that the accesses ask for.
struct Order {
  std::vector<backend::Range> deps_of;  ///< of each command, into `deps`
  std::vector<uint32_t> deps;           ///< each command's ascending; reduced: every edge is necessary
  std::vector<uint32_t> levels;         ///< 1 + the greatest level of the deps; a fence: that greatest level
  Reachability before;                  ///< transitive closure; empty unless reduced
  size_t conflicts = 0;  ///< direct dependencies before the reduction, those on fences excluded

  std::span<const uint32_t> deps_of_command(size_t command) const {
    return std::span(deps).subspan(deps_of[command].first, deps_of[command].count);
  }
};

/// The order by HazardTracker, reduced; a fence follows everything before it and precedes everything after
/// it. O(accesses * log) plus O(commands^2 / 64) for the reduction, whose closure takes commands^2 / 16 bytes.
Order derive_order(const AccessList& accesses, bool reduced = true);

}  // namespace refrain::graph
