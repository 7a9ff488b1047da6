#include "refrain/graph/merged_order.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace refrain::graph {

using backend::kNone;

MergedOrder::MergedOrder(const Order& order) : order_(&order), seen_(order.deps_of.size()) {
  node_.resize(order.deps_of.size());
  std::iota(node_.begin(), node_.end(), 0);
  next_ = place_ = places_ = node_;
}

template <class Each>
void MergedOrder::each_dep(uint32_t node, Each each) const {
  uint32_t command = node;
  do {
    for (const uint32_t dep : order_->deps_of_command(command)) each(node_[dep]);
    command = next_[command];
  } while (command != node);
}

size_t MergedOrder::distance(uint32_t a, uint32_t b) const {
  const uint32_t x = place_[node_[a]], y = place_[node_[b]];
  return std::max(x, y) - std::min(x, y);
}

uint32_t MergedOrder::join(uint32_t a, uint32_t b) {
  uint32_t earlier = node_[a], later = node_[b];
  if (place_[earlier] > place_[later]) std::swap(earlier, later);
  if (const uint32_t between = follow(earlier, later); between != kNone) return between;
  move(earlier, later);
  const uint32_t first = std::min(earlier, later), second = std::max(earlier, later);
  places_[place_[earlier]] = first;
  place_[first] = place_[earlier];
  uint32_t command = second;
  do {
    node_[command] = first;
    command = next_[command];
  } while (command != second);
  std::swap(next_[first], next_[second]);
  return kNone;
}

/// Finds all between the two that `later` follows. Returns the first that follows `earlier`; kNone: none does.
uint32_t MergedOrder::follow(uint32_t earlier, uint32_t later) {
  ++search_;
  uint32_t between = kNone;
  found_.assign(1, later);
  for (size_t i = 0; i < found_.size(); ++i) {
    const uint32_t node = found_[i];
    each_dep(node, [&](uint32_t dep) {
      if (dep == earlier && node != later) between = std::min(between, node);
      if (dep == node || place_[dep] <= place_[earlier] || seen_[dep] == search_) return;
      seen_[dep] = search_;
      found_.push_back(dep);
    });
  }
  return between;
}

/// Moves what follow() found before `earlier`, and empties the place of `later`.
void MergedOrder::move(uint32_t earlier, uint32_t later) {
  const uint32_t begin = place_[earlier], end = place_[later];
  places_[end] = kNone;
  if (found_.size() == 1) return;
  uint32_t to = begin;
  moved_.clear();
  const auto put = [&](uint32_t node) {
    places_[to] = node;
    place_[node] = to++;
  };
  for (uint32_t place = begin; place < end; ++place) {
    const uint32_t node = places_[place];
    if (node == kNone) continue;
    if (seen_[node] == search_) {
      put(node);
    } else {
      moved_.push_back(node);
    }
  }
  for (const uint32_t node : moved_) put(node);
  std::fill(places_.begin() + to, places_.begin() + end, kNone);
}

std::vector<uint32_t> MergedOrder::sequence() const {
  std::vector<uint32_t> nodes;
  std::ranges::copy_if(places_, std::back_inserter(nodes), [](uint32_t node) { return node != kNone; });
  return nodes;
}

}  // namespace refrain::graph
