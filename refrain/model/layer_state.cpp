#include "refrain/model/layer_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "refrain/core/error.h"

namespace refrain::model {

std::vector<CacheGroup> cache_groups(std::span<const LayerState> layers) {
  std::vector<CacheGroup> groups;
  for (uint32_t i = 0; i < layers.size(); ++i) {
    const auto has_layer = [&](const CacheGroup& group) {
      const auto* shared = std::get_if<SharedKvState>(&layers[i]);
      if (shared == nullptr) return group.state == std::get<KvState>(layers[i]);
      return std::ranges::find(group.layers, shared->layer) != group.layers.end();
    };
    if (std::holds_alternative<FixedState>(layers[i])) {
      throw InvalidArgument(
          fmt::format("[cache] layer {}: expected keys and values, got state of a fixed size", i));
    }
    auto group = std::ranges::find_if(groups, has_layer);
    if (group == groups.end()) {
      const auto* own = std::get_if<KvState>(&layers[i]);
      if (own == nullptr) {
        throw InvalidArgument(
            fmt::format("[cache] layer {}: expected to share with an earlier layer, got layer {}", i,
                        std::get<SharedKvState>(layers[i]).layer));
      }
      group = groups.insert(groups.end(), {*own, {}});
    }
    group->layers.push_back(i);
  }
  return groups;
}

}  // namespace refrain::model
