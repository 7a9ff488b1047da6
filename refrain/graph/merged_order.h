// The order of commands while some of them become one: what the fuse pass asks before a command joins a group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "refrain/graph/hazards.h"

namespace refrain::graph {

/// Commands in an order that their dependencies allow, in which some are already one. A node is a plain command
/// or several that are one; any of its commands stands for it.
class MergedOrder {
 public:
  /// The recorded order; each command is a node. `order` outlives this.
  explicit MergedOrder(const Order& order);

  /// How far apart two nodes stand.
  size_t distance(uint32_t a, uint32_t b) const;
  /// Makes two nodes one, unless a path of dependencies leads from one to the other through a third: then
  /// returns the first command of such a node, and has done nothing. backend::kNone: done. Those between that the
  /// later one follows move before the new node, the others behind it. O(distance, and dependencies of the
  /// nodes between).
  uint32_t join(uint32_t a, uint32_t b);
  /// The first command of each node, in order.
  std::vector<uint32_t> sequence() const;

 private:
  template <class Each>
  void each_dep(uint32_t node, Each each) const;
  uint32_t follow(uint32_t earlier, uint32_t later);
  void move(uint32_t earlier, uint32_t later);

  const Order* order_;
  std::vector<uint32_t> node_;    // of each command: the first command of its node
  std::vector<uint32_t> next_;    // of each command: another one of its node, around in a circle
  std::vector<uint32_t> place_;   // of each node: index into places_
  std::vector<uint32_t> places_;  // nodes in order; kNone: it has become part of another
  std::vector<uint32_t> seen_;    // of each node: the last search that met it
  std::vector<uint32_t> found_;   // what follow() went through, and what is left of it to go through
  std::vector<uint32_t> moved_;
  uint32_t search_ = 0;
};

}  // namespace refrain::graph
