#include "refrain/model/kv_cache.h"

#include <fmt/format.h>

#include <numeric>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::model {

KvCache::KvCache(Device& device, const Config& config, uint32_t sequences, uint32_t context_tokens)
    : groups_(cache_groups(config.state)), sequences_(sequences), layers_(config.state.size()) {
  if (sequences == 0 || context_tokens == 0) {
    throw InvalidArgument(
        fmt::format("[kv_cache] expected sequences and positions, got {} of {}", sequences, context_tokens));
  }
  const std::optional<uint32_t> pages = checked_mul(ceil_div(context_tokens, ops::kPagePositions), sequences);
  if (!pages) {
    throw InvalidArgument(
        fmt::format("[kv_cache] {} sequences of {} positions are too many", sequences, context_tokens));
  }
  for (size_t group = 0; group < groups_.size(); ++group) {
    const auto& [state, layers] = groups_[group];
    for (const uint32_t layer : layers) {
      const auto* shared = std::get_if<SharedKvState>(&config.state[layer]);
      const Shape shape{2, *pages, state.kv_heads, ops::kPagePositions, state.head_dim};
      layers_[layer] = {
          shared != nullptr ? layers_[shared->layer].buffer : device.buffer(DType::f32, shape, "kv cache"),
          group};
    }
  }
  page_table_.resize(*pages);
  std::iota(page_table_.begin(), page_table_.end(), 0u);
}

}  // namespace refrain::model
