// Finds which bits of device/features.h the machine has, and names them.
#pragma once

#include <cstdint>
#include <string>

#include "refrain/device/features.h"

namespace refrain::device::cpu {

/// The bits of the machine that this runs on.
uint64_t detect_features();

/// `avx2, avx512`; `portable` when there is none.
std::string describe_features(uint64_t features);

}  // namespace refrain::device::cpu
