// add_bias: the reference.
#include "refrain/ops/add_bias/add_bias.h"

namespace refrain::ops {

void add_bias_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<AddBiasConstants>();
  for (size_t row = 0; row < args.live_rows; ++row) {
    for (size_t column = 0; column < c.columns; ++column) {
      const size_t i = row * c.columns + column;
      args.arg<float>(2)[i] = static_cast<float>(static_cast<double>(args.arg<float>(0)[i]) +
                                                 static_cast<double>(args.arg<const float>(1)[column]));
    }
  }
}

}  // namespace refrain::ops
