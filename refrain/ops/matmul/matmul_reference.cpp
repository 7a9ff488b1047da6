// matmul: the reference.
#include <vector>

#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul/matmul.h"

namespace refrain::ops {

void matmul_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<MatmulConstants>();
  std::vector<float> weight(c.columns);
  for (size_t output = 0; output < c.outputs; ++output) {
    matrix_layout(*c.format).unpack(c.weight(), args.arg<const std::byte>(1), {output, output + 1},
                                    weight.data());
    for (size_t row = 0; row < args.live_rows; ++row) {
      double sum = 0;
      for (size_t k = 0; k < c.columns; ++k)
        sum += double{args.arg<float>(0)[row * c.columns + k]} * weight[k];
      args.arg<float>(2)[row * c.outputs + output] = static_cast<float>(sum);
    }
  }
}

}  // namespace refrain::ops
