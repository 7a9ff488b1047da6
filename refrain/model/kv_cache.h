// The key-value cache: paged memory for every layer, shared by the sequences of a model runner.
#pragma once

#include <cstdint>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/model/config.h"
#include "refrain/ops/step_block.h"

namespace refrain::model {

/// `sequences` sequences of up to `context_tokens` positions. Sequence s owns the page table entries
/// [s * pages_per_sequence(), (s + 1) * pages_per_sequence()), and the table is the identity, the same for
/// every group of layers: those that attend to a window keep all positions, too.
class KvCache {
 public:
  /// Throws InvalidArgument for a size of zero or out of range, or a state that has no cache.
  KvCache(Device& device, const Config& config, uint32_t sequences, uint32_t context_tokens);

  /// f32 [2 (keys, values)][pages][kv_heads][64][head_dim]; one buffer for layers that share
  const Buffer& layer(uint32_t index) const { return layers_[index].buffer; }
  const KvState& state(uint32_t index) const { return groups_[layers_[index].group].state; }
  const std::vector<CacheGroup>& groups() const { return groups_; }
  uint32_t sequences() const { return sequences_; }
  uint32_t pages() const { return static_cast<uint32_t>(page_table_.size()); }
  uint32_t pages_per_sequence() const { return pages() / sequences_; }
  const std::vector<uint32_t>& page_table() const { return page_table_; }

 private:
  struct Layer {
    Buffer buffer;
    size_t group = 0;
  };

  std::vector<CacheGroup> groups_;
  uint32_t sequences_;
  std::vector<Layer> layers_;
  std::vector<uint32_t> page_table_;
};

}  // namespace refrain::model
