// Argmax, the reference: from the end, so that the lower of equal indices comes last.
#include <cmath>

#include "refrain/ops/argmax/argmax.h"

namespace refrain::ops {

void argmax_reference(const backend::TileArgs& args) {
  const size_t columns = args.constants_as<ArgmaxConstants>().columns;
  for (size_t r = 0; r < args.live_rows; ++r) {
    const float* row = args.arg<const float>(0) + r * columns;
    bool found = false;
    size_t best = 0;
    for (size_t i = columns; i-- > 0;) {
      if (std::isnan(row[i])) continue;
      if (!found || static_cast<double>(row[i]) >= static_cast<double>(row[best])) best = i;
      found = true;
    }
    args.arg<uint32_t>(1)[r] = static_cast<uint32_t>(best);
  }
}

}  // namespace refrain::ops
