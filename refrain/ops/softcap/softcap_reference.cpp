// softcap: the reference.
#include <cmath>

#include "refrain/ops/softcap/softcap.h"

namespace refrain::ops {

void softcap_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<SoftcapConstants>();
  for (size_t i = 0; i < size_t{args.live_rows} * c.size.columns; ++i) {
    const double x = args.arg<float>(0)[i];
    args.arg<float>(1)[i] = static_cast<float>(c.cap * std::tanh(x / c.cap));
  }
}

}  // namespace refrain::ops
