// The key-value cache: paged memory for every layer, shared by the sequences of a model runner.
#pragma once

#include <cstdint>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/model/config.h"
#include "refrain/ops/step_block.h"

namespace refrain::model {

/// `sequences` sequences of up to `context_tokens` positions. Sequence s owns the page table entries
/// [s * pages_per_sequence(), (s + 1) * pages_per_sequence()), and the table is the identity.
class KvCache {
 public:
  KvCache(Device& device, const Config& config, uint32_t sequences, uint32_t context_tokens);

  /// f32 [2 (keys, values)][pages][kv_heads][64][head_dim]
  const Buffer& layer(uint32_t index) const { return layers_[index]; }
  const ops::CacheGeometry& geometry() const { return geometry_; }
  uint32_t sequences() const { return sequences_; }
  uint32_t pages_per_sequence() const { return geometry_.pages / sequences_; }
  const std::vector<uint32_t>& page_table() const { return page_table_; }

 private:
  ops::CacheGeometry geometry_;
  uint32_t sequences_;
  std::vector<Buffer> layers_;
  std::vector<uint32_t> page_table_;
};

}  // namespace refrain::model
