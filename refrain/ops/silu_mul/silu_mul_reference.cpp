// silu_mul: the reference.
#include <cmath>

#include "refrain/ops/silu_mul/silu_mul.h"

namespace refrain::ops {

void silu_mul_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<SiluMulConstants>();
  const float* gate = args.arg<float>(0);
  const float* up = args.arg<float>(1);
  float* output = args.arg<float>(2);
  for (size_t i = 0; i < size_t{args.live_rows} * c.columns; ++i) {
    const double g = gate[i];
    output[i] = static_cast<float>(g / (1 + std::exp(-g)) * up[i]);
  }
}

}  // namespace refrain::ops
