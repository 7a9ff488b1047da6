// rms_norm: the reference.
#include <cmath>

#include "refrain/ops/rms_norm/rms_norm.h"

namespace refrain::ops {

void rms_norm_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<RmsNormConstants>();
  const float* weight = args.arg<float>(1);
  for (size_t vector = 0; vector < size_t{args.live_rows} * c.vectors; ++vector) {
    const float* input = args.arg<float>(0) + vector * c.columns;
    float* output = args.arg<float>(2) + vector * c.columns;
    double sum = 0;
    for (uint32_t i = 0; i < c.columns; ++i) sum += static_cast<double>(input[i]) * input[i];
    const double root = std::sqrt(sum / c.columns + static_cast<double>(c.eps));
    for (uint32_t i = 0; i < c.columns; ++i) {
      output[i] = static_cast<float>(input[i] / root * (weight != nullptr ? weight[i] : 1.0));
    }
  }
}

}  // namespace refrain::ops
