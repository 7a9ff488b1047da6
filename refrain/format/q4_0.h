// GGML's Q4_0: 32 codes of 4 bits and a scale.
#pragma once

#include "refrain/core/weight_format.h"

namespace refrain::format {

/// w[i] = d * ((q[i] & 15) - 8), w[i + 16] = d * ((q[i] >> 4) - 8). A block is 18 bytes: d f16, q u8 [16].
/// Source: ggml, block_q4_0.
const WeightFormat& q4_0();

}  // namespace refrain::format
