// GGML's Q8_0: 32 codes of 8 bits and a scale.
#pragma once

#include "refrain/core/weight_format.h"

namespace refrain::format {

/// w = d * q. A block is 34 bytes: d f16, q i8 [32]. Source: ggml, block_q8_0.
const WeightFormat& q8_0();

}  // namespace refrain::format
