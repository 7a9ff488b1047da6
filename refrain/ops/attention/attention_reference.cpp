// Attention in double, rounded once: the plain softmax over all positions, with checks of its own.
#include <algorithm>
#include <cmath>

#include "refrain/core/half.h"
#include "refrain/ops/attention/attention_history.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

AttentionHistory attention_history(const backend::TileArgs& args, const AttentionConstants& c,
                                   size_t row_index, size_t kv_head) {
  const StepRow& row = args.arg<const StepRow>(1)[row_index];
  uint32_t* status = args.arg<uint32_t>(4);
  const auto element = [&](uint64_t at) {
    return c.cache_type == DType::f16 ? args.arg<const f16>(3)[at].to_float() : args.arg<const float>(3)[at];
  };
  AttentionHistory found;
  if (row.slot == 0xFFFFFFFF) return found;
  if (row.slot >= c.slots) {
    status[c.slots] |= kSlotOutOfRange;
    return found;
  }
  if (row.position >= uint64_t{64} * c.pages_per_slot) {
    status[row.slot] |= kPositionOutOfRange;
    return found;
  }
  found.first = c.window != 0 && row.position >= c.window ? row.position - c.window + 1 : 0;
  for (uint64_t j = found.first; j <= row.position; ++j) {
    const uint64_t page = args.arg<const uint32_t>(2)[uint64_t{row.slot} * c.pages_per_slot + j / 64];
    if (page >= c.pages) {
      status[row.slot] |= kPageOutOfRange;
      return {};
    }
    const uint64_t key = ((page * c.kv_heads + kv_head) * 64 + j % 64) * c.head_dim;
    const uint64_t value = key + uint64_t{c.pages} * c.kv_heads * 64 * c.head_dim;
    for (uint64_t d = 0; d < c.head_dim; ++d) {
      found.keys.push_back(element(key + d));
      found.values.push_back(element(value + d));
    }
  }
  return found;
}

std::vector<double> attention_scores(const AttentionConstants& c, const float* query,
                                     const std::vector<float>& keys) {
  std::vector<double> scores;
  for (size_t key = 0; key < keys.size(); key += c.head_dim) {
    double score = 0;
    for (size_t d = 0; d < c.head_dim; ++d)
      score += static_cast<double>(query[d]) * static_cast<double>(keys[key + d]);
    score *= static_cast<double>(c.scale);
    const auto cap = static_cast<double>(c.softcap);
    scores.push_back(cap != 0 ? cap * std::tanh(score / cap) : score);
  }
  return scores;
}

void attention_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<AttentionConstants>();
  for (size_t r = 0; r < args.live_rows; ++r) {
    for (size_t h = 0; h < c.heads; ++h) {
      const size_t offset = (r * c.heads + h) * c.head_dim;
      const float* query = args.arg<const float>(0) + offset;
      float* output = args.arg<float>(5) + offset;
      const AttentionHistory cached = attention_history(args, c, r, h / (c.heads / c.kv_heads));
      std::vector<double> weights = attention_scores(c, query, cached.keys);
      const double greatest = weights.empty() ? 0 : *std::max_element(weights.begin(), weights.end());
      double total = 0;
      for (double& weight : weights) total += weight = std::exp(weight - greatest);
      for (size_t d = 0; d < c.head_dim; ++d) {
        double sum = 0;
        for (size_t j = 0; j < weights.size(); ++j)
          sum += weights[j] * static_cast<double>(cached.values[j * c.head_dim + d]);
        output[d] = weights.empty() ? 0.0f : static_cast<float>(sum / total);
      }
    }
  }
}

}  // namespace refrain::ops
