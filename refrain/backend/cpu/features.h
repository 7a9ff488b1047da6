// Finds which bits of backend/features.h the machine has, and names them.
#pragma once

#include <cstdint>
#include <string>

#include "refrain/backend/features.h"

namespace refrain::backend::cpu {

/// The bits of the machine that this runs on.
uint64_t detect_features();

/// `avx2, avx512`; `portable` when there is none.
std::string describe_features(uint64_t features);

}  // namespace refrain::backend::cpu
