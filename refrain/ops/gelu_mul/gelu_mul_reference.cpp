// gelu_mul: the reference.
#include <cmath>
#include <numbers>

#include "refrain/ops/gelu_mul/gelu_mul.h"

namespace refrain::ops {

void gelu_mul_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<GeluMulConstants>();
  const float* gate = args.arg<float>(0);
  const float* up = args.arg<float>(1);
  float* output = args.arg<float>(2);
  for (size_t i = 0; i < size_t{args.live_rows} * c.columns; ++i) {
    const double g = gate[i];
    const double u = std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g);
    output[i] = static_cast<float>(g / (1 + std::exp(-2 * u)) * up[i]);
  }
}

}  // namespace refrain::ops
