// The key-value cache: paged memory for every layer, shared by the slots of a model runner.
#pragma once

#include <cstdint>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/model/config.h"
#include "refrain/ops/step_block.h"

namespace refrain::model {

/// Pages for `slots` slots of up to `context_tokens` positions, in each group of layers: those that attend to a
/// window keep all positions, too.
class KvCache {
 public:
  /// Throws InvalidArgument for a size of zero or out of range, a dtype that is none of a cache, or a state that has no
  /// cache.
  KvCache(Device& device, const Config& config, uint32_t slots, uint32_t context_tokens,
          DType dtype = DType::f32);

  /// [2 (keys, values)][pages][kv_heads][64][head_dim]: KvState::position_bytes a position; one buffer for layers that share
  const Buffer& layer(uint32_t index) const { return layers_[index].buffer; }
  const KvState& state(uint32_t index) const { return groups_[layers_[index].group].state; }
  /// Whose page table a layer goes by.
  uint32_t group_of(uint32_t index) const { return layers_[index].group; }
  const std::vector<CacheGroup>& groups() const { return groups_; }
  DType dtype() const { return dtype_; }
  size_t bytes() const { return bytes_; }    ///< of all layers
  uint32_t pages() const { return pages_; }  ///< of a layer
  uint32_t pages_per_slot() const { return pages_per_slot_; }

 private:
  struct Layer {
    Buffer buffer;
    uint32_t group = 0;
  };

  std::vector<CacheGroup> groups_;
  DType dtype_;
  size_t bytes_ = 0;
  uint32_t pages_ = 0;
  uint32_t pages_per_slot_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace refrain::model
