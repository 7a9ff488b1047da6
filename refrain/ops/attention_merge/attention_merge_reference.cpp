// The merge of attention's parts in double, rounded once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "refrain/ops/attention_merge/attention_merge.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

void attention_merge_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<AttentionMergeConstants>();
  for (size_t r = 0; r < args.live_rows; ++r) {
    const uint64_t position = args.arg<const StepRow>(2)[r].position;
    const uint64_t first = c.window != 0 && position >= c.window ? position - c.window + 1 : 0;
    const uint64_t chunks = std::min<uint64_t>(position / 256 - first / 256 + 1, c.chunks);
    for (size_t h = 0; h < c.heads; ++h) {
      const auto head = [&](uint64_t chunk) { return (r * c.chunks + chunk) * c.heads + h; };
      const auto sums = [&](uint64_t chunk, size_t which) {
        return static_cast<double>(args.arg<const float>(0)[head(chunk) * 2 + which]);
      };
      double max = -std::numeric_limits<double>::infinity();
      for (uint64_t i = 0; i < chunks; ++i) max = std::max(max, sums(i, 0));
      for (size_t d = 0; d < c.head_dim; ++d) {
        double total = 0, weighted = 0;
        for (uint64_t i = 0; i < chunks; ++i) {
          const double factor = std::exp(sums(i, 0) - max);
          total += factor * sums(i, 1);
          weighted += factor * static_cast<double>(args.arg<const float>(1)[head(i) * c.head_dim + d]);
        }
        args.arg<float>(3)[(r * c.heads + h) * c.head_dim + d] =
            sums(0, 1) == 0 ? 0.0f : static_cast<float>(weighted / total);
      }
    }
  }
}

}  // namespace refrain::ops
