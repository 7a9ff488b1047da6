// quantized_matmul: the reference.
#include "refrain/ops/quantized_matmul/quantized_matmul.h"

namespace refrain::ops {

void quantized_matmul_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<QuantizedMatmulConstants>();
  for (size_t row = 0; row < args.live_rows; ++row) {
    const float* input = args.arg<float>(0) + row * c.columns;
    for (size_t output = 0; output < c.outputs; ++output) {
      double sum = 0;
      for_affine_row(args.arg<const std::byte>(1), c.weight(), output,
                     [&](size_t k, uint32_t code, double scale, double bias) {
                       sum += input[k] * (scale * code + bias);
                     });
      args.arg<float>(2)[row * c.outputs + output] = static_cast<float>(sum);
    }
  }
}

}  // namespace refrain::ops
