// Rope in double, rounded once. The angle is float32 by definition.
#include <cmath>
#include <vector>

#include "refrain/ops/rope/rope.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {

void rope_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<RopeConstants>();
  const float* input = args.arg<const float>(0);
  const StepRow* rows = args.arg<const StepRow>(1);
  const float* frequencies = args.arg<const float>(2);
  float* output = args.arg<float>(3);
  std::vector<double> head(c.head_dim);
  for (size_t r = 0; r < args.live_rows; ++r) {
    for (size_t h = 0; h < c.heads; ++h) {
      const size_t offset = (r * c.heads + h) * c.head_dim;
      for (size_t i = 0; i < c.head_dim; ++i) head[i] = static_cast<double>(input[offset + i]);
      for (size_t i = 0; i < c.pairs; ++i) {
        const size_t a = c.interleaved != 0 ? 2 * i : i;
        const size_t b = c.interleaved != 0 ? 2 * i + 1 : i + c.pairs;
        const float angle = static_cast<float>(rows[r].position) * frequencies[i];
        double scale = static_cast<double>(c.scale);
        if (c.growth != 0)
          scale *= 1 + static_cast<double>(c.growth) *
                           std::log(1 + std::floor(rows[r].position / static_cast<double>(c.period)));
        const double cosine = std::cos(static_cast<double>(angle)) * scale;
        const double sine = std::sin(static_cast<double>(angle)) * scale;
        const double x = head[a];
        const double y = head[b];
        head[a] = x * cosine - y * sine;
        head[b] = y * cosine + x * sine;
      }
      for (size_t i = 0; i < c.head_dim; ++i) output[offset + i] = static_cast<float>(head[i]);
    }
  }
}

}  // namespace refrain::ops
