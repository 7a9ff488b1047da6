// The parts of attention in double, rounded once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "refrain/ops/attention/attention_history.h"
#include "refrain/ops/attention_part/attention_part.h"

namespace refrain::ops {

void attention_part_reference(const backend::TileArgs& args) {
  const AttentionConstants& c = args.constants_as<AttentionPartConstants>().attention;
  const uint64_t chunks = c.chunks();
  for (size_t r = 0; r < args.live_rows; ++r) {
    for (size_t h = 0; h < c.heads; ++h) {
      const float* query = args.arg<const float>(0) + (r * c.heads + h) * c.head_dim;
      const AttentionHistory cached = attention_history(args, c, r, h / (c.heads / c.kv_heads));
      const std::vector<double> scores = attention_scores(c, query, cached.keys);
      if (scores.empty()) {
        float* sums = args.arg<float>(5) + (r * chunks * c.heads + h) * 2;
        sums[0] = -std::numeric_limits<float>::infinity();
        sums[1] = 0;
      }
      const uint64_t end = cached.first + scores.size();
      for (uint64_t begin = cached.first; begin < end; begin = (begin / 256 + 1) * 256) {
        const uint64_t chunk_end = std::min(end, (begin / 256 + 1) * 256);
        const size_t at = (r * chunks + begin / 256 - cached.first / 256) * c.heads + h;
        double max = -std::numeric_limits<double>::infinity(), sum = 0;
        for (uint64_t j = begin; j < chunk_end; ++j) max = std::max(max, scores[j - cached.first]);
        std::vector<double> weighted(c.head_dim);
        for (uint64_t j = begin; j < chunk_end; ++j) {
          const double weight = std::exp(scores[j - cached.first] - max);
          sum += weight;
          for (size_t d = 0; d < c.head_dim; ++d)
            weighted[d] += weight * static_cast<double>(cached.values[(j - cached.first) * c.head_dim + d]);
        }
        args.arg<float>(5)[at * 2] = static_cast<float>(max);
        args.arg<float>(5)[at * 2 + 1] = static_cast<float>(sum);
        for (size_t d = 0; d < c.head_dim; ++d)
          args.arg<float>(6)[at * c.head_dim + d] = static_cast<float>(weighted[d]);
      }
    }
  }
}

}  // namespace refrain::ops
