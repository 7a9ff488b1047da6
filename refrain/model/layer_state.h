// What a layer keeps between steps, as its architecture declares it.
#pragma once

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "refrain/core/dtype.h"
#include "refrain/core/shape.h"

namespace refrain::model {

/// Keys and values of the positions of a sequence, in pages.
struct KvState {
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t window = 0;  ///< positions that a row attends to, its own the last; 0: all

  /// Of one layer's keys and values, in a cache of this type.
  constexpr size_t position_bytes(DType cache) const {
    return size_t{2} * kv_heads * head_dim * size_bytes(cache);
  }
  bool operator==(const KvState&) const = default;
};

/// The keys and values of an earlier layer, read and not written.
struct SharedKvState {
  uint32_t layer = 0;
};

/// Memory of one size for each sequence, however long it is. Declared only: nothing gives it memory yet.
struct FixedState {
  DType dtype = DType::f32;
  Shape shape;
};

using LayerState = std::variant<KvState, SharedKvState, FixedState>;

/// Layers whose keys and values are alike, so that one page table serves them.
struct CacheGroup {
  KvState state;
  std::vector<uint32_t> layers;  ///< ascending; with those that share
};

/// The groups, by their first layers. Throws InvalidArgument, naming the layer, where one shares with a layer
/// that is not an earlier one with keys and values, or has a FixedState.
std::vector<CacheGroup> cache_groups(std::span<const LayerState> layers);

}  // namespace refrain::model
