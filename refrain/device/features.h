// Feature bits of host processors, tested against Kernel::needs. Backends of other kinds define their own.
#pragma once

#include <cstdint>

namespace refrain::device {

inline constexpr uint64_t kFeatureAvx2 =
    1;  ///< AVX2, FMA and F16C, and an operating system that saves their state

}  // namespace refrain::device
