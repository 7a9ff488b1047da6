// What a row attends to, for the references of attention and attention_part.
#pragma once

#include <vector>

#include "refrain/ops/attention/attention.h"

namespace refrain::ops {

/// The cached vectors of a row's positions, [positions, head_dim]; empty when the row is idle or refused.
struct AttentionHistory {
  uint64_t first = 0;  ///< the first position
  std::vector<float> keys, values;
};

/// Of arguments 1 to 4 of `args`; raises status.
AttentionHistory attention_history(const backend::TileArgs& args, const AttentionConstants& c, size_t row,
                                   size_t kv_head);
/// scale (query . key) for each key, within the cap.
std::vector<double> attention_scores(const AttentionConstants& c, const float* query,
                                     const std::vector<float>& keys);

}  // namespace refrain::ops
