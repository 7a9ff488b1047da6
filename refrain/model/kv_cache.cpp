#include "refrain/model/kv_cache.h"

#include <fmt/format.h>

#include <numeric>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::model {

KvCache::KvCache(Device& device, const Config& config, uint32_t sequences, uint32_t context_tokens)
    : sequences_(sequences) {
  if (sequences == 0 || context_tokens == 0) {
    throw InvalidArgument(
        fmt::format("[kv_cache] expected sequences and positions, got {} of {}", sequences, context_tokens));
  }
  const std::optional<uint32_t> pages = checked_mul(ceil_div(context_tokens, ops::kPagePositions), sequences);
  if (!pages) {
    throw InvalidArgument(
        fmt::format("[kv_cache] {} sequences of {} positions are too many", sequences, context_tokens));
  }
  geometry_ = {*pages, config.kv_heads, config.head_dim};
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    layers_.push_back(device.buffer(
        DType::f32, {2, *pages, config.kv_heads, ops::kPagePositions, config.head_dim}, "kv cache"));
  }
  page_table_.resize(*pages);
  std::iota(page_table_.begin(), page_table_.end(), 0u);
}

}  // namespace refrain::model
