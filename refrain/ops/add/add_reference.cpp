// add: the reference.
#include "refrain/ops/add/add.h"

namespace refrain::ops {

void add_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<AddConstants>();
  const float* a = args.arg<float>(0);
  const float* b = args.arg<float>(1);
  float* output = args.arg<float>(2);
  for (size_t i = 0; i < size_t{args.live_rows} * c.columns; ++i) {
    output[i] = static_cast<float>(static_cast<double>(a[i]) + static_cast<double>(b[i]));
  }
}

}  // namespace refrain::ops
