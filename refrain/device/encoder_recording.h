// What an encoder has taken down so far. Internal to encoder.cpp, whose hot path it is.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/device/encoder.h"

namespace refrain {

// Of ComputeGraph::infos, in every recording.
constexpr uint32_t kUnbound = 0, kLiveCount = 1;

/// As ==, in line: shapes of few dimensions are compared for every argument recorded.
inline bool same_dims(const Shape& a, const Shape& b) {
  if (a.rank() != b.rank()) return false;
  for (size_t axis = 0; axis < a.rank(); ++axis) {
    if (a[axis] != b[axis]) return false;
  }
  return true;
}

/// Spreads addresses and small numbers over the upper bits.
constexpr uint64_t mixed(uint64_t value) { return value * 0x9e3779b97f4a7c15u; }

struct CommandEncoder::Recording {
  std::shared_ptr<const void> id =
      std::make_shared<char>();  // shared with its temps, so that others are noticed
  ComputeGraph graph;
  std::vector<uint8_t> temp_written;                                  // of each temp, true or false
  std::array<backend::ArgumentInfo, backend::kMaxArguments> infos{};  // of the dispatch being recorded
  std::array<uint32_t, 256>
      recent_infos{};  // into graph.infos: recently added, so that most repeats are shared
  std::vector<const void*> kept = std::vector<const void*>(64);  // set of graph.resources: open addressing
  uint32_t label = 0;
  uint64_t dispatches = 0;
  struct OpenScope {
    std::string text;  // with the scopes around it
    uint32_t label_before = 0;
    uint64_t serial = 0;
  };
  std::vector<OpenScope> scopes;
  uint64_t last_scope = 0;
  std::shared_ptr<Recording*> self;  // for scopes, made with the first; nobody else holds it

  void set_label(std::string_view text) {
    if (text.empty()) {
      label = 0;
    } else if (label == 0 || graph.labels[label] != text) {
      graph.labels.emplace_back(text);
      label = static_cast<uint32_t>(graph.labels.size() - 1);
    }
  }

  /// The index in graph.infos of an argument of this kind.
  uint32_t info(DType dtype, const Shape& shape, const backend::WeightInfo* weight = nullptr,
                const backend::WeightLayout* layout = nullptr) {
    uint64_t hash = reinterpret_cast<uintptr_t>(weight) / 16 + static_cast<uint64_t>(dtype);
    for (size_t axis = 0; axis < shape.rank(); ++axis)
      hash = mixed(hash) + static_cast<uint64_t>(shape[axis]);
    uint32_t& recent = recent_infos[mixed(hash) >> 56];
    const backend::ArgumentInfo& old = graph.infos[recent];
    if (!old.bound || old.dtype != dtype || old.weight != weight || old.layout != layout ||
        !same_dims(old.shape, shape)) {
      graph.infos.push_back({true, dtype, shape, weight, layout});
      recent = static_cast<uint32_t>(graph.infos.size() - 1);
    }
    return recent;
  }

  /// Where `owner` is in `kept`, or the free place for it.
  const void*& place(const void* owner) {
    size_t slot = mixed(reinterpret_cast<uintptr_t>(owner)) >> 32 & (kept.size() - 1);
    while (kept[slot] != nullptr && kept[slot] != owner) slot = (slot + 1) & (kept.size() - 1);
    return kept[slot];
  }

  /// Makes `kept` anew with this many places, at least twice as many as there are resources.
  void rehash(size_t places) {
    std::vector<const void*>(places).swap(kept);
    for (const std::shared_ptr<const void>& resource : graph.resources)
      place(resource.get()) = resource.get();
  }

  /// Keeps `owner` alive as long as the graph.
  template <class T>
  void retain(const std::shared_ptr<T>& owner) {
    if (place(owner.get()) != nullptr) return;
    if ((graph.resources.size() + 1) * 2 > kept.size()) rehash(kept.size() * 2);
    graph.resources.push_back(owner);
    place(owner.get()) = owner.get();
  }

  /// How much there is of everything that a dispatch adds to.
  struct Mark {
    size_t commands, bindings, constants, resources, infos;
  };
  Mark mark() const {
    return {graph.commands.size(), graph.bindings.size(), graph.constants.size(), graph.resources.size(),
            graph.infos.size()};
  }
  /// Takes back what was added since.
  void restore(const Mark& mark) noexcept {
    graph.commands.resize(mark.commands);
    graph.bindings.resize(mark.bindings);
    graph.constants.resize(mark.constants);
    if (graph.resources.size() != mark.resources) {
      std::ranges::fill(kept, nullptr);
      graph.resources.resize(mark.resources);
      for (const auto& resource : graph.resources) place(resource.get()) = resource.get();
    }
    if (graph.infos.size() != mark.infos) {
      recent_infos.fill(kUnbound);
      graph.infos.resize(mark.infos);
    }
  }
};

}  // namespace refrain
