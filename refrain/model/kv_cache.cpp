#include "refrain/model/kv_cache.h"

#include <fmt/format.h>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::model {

KvCache::KvCache(Device& device, const Config& config, uint32_t slots, uint32_t context_tokens, DType dtype)
    : groups_(cache_groups(config.state)), dtype_(dtype), layers_(config.state.size()) {
  if (slots == 0 || context_tokens == 0) {
    throw InvalidArgument(
        fmt::format("[kv_cache] expected slots and positions, got {} of {}", slots, context_tokens));
  }
  if (!ops::kCacheTypes.has(dtype))
    throw InvalidArgument(fmt::format("[kv_cache] type: expected f32 or f16, got {}", name(dtype)));
  pages_per_slot_ = ceil_div(context_tokens, ops::kPagePositions);
  const std::optional<uint32_t> pages = checked_mul(pages_per_slot_, slots);
  if (!pages) {
    throw InvalidArgument(
        fmt::format("[kv_cache] {} slots of {} positions are too many", slots, context_tokens));
  }
  pages_ = *pages;
  for (uint32_t group = 0; group < groups_.size(); ++group) {
    const auto& [state, layers] = groups_[group];
    for (const uint32_t layer : layers) {
      const auto* shared = std::get_if<SharedKvState>(&config.state[layer]);
      const Shape shape{2, *pages, state.kv_heads, ops::kPagePositions, state.head_dim};
      layers_[layer] = {
          shared != nullptr ? layers_[shared->layer].buffer : device.buffer(dtype, shape, "kv cache"), group};
      if (shared == nullptr) bytes_ += layers_[layer].buffer.bytes();
    }
  }
}

}  // namespace refrain::model
