// Feature bits of host processors, as in DeviceInfo::features and Kernel::needs. Backends of other kinds
// define their own.
#pragma once

#include <cstdint>

namespace refrain::backend {

// Each bit says that the instructions exist and that the operating system saves their registers.
inline constexpr uint64_t kFeatureAvx2 = uint64_t{1} << 0;    ///< AVX2, FMA and F16C
inline constexpr uint64_t kFeatureAvx512 = uint64_t{1} << 1;  ///< AVX-512 F, BW, CD, DQ and VL; implies AVX2
inline constexpr uint64_t kFeatureAvx512Vnni = uint64_t{1} << 2;  ///< AVX-512 VNNI; implies AVX-512
inline constexpr uint64_t kFeatureAvx512Bf16 = uint64_t{1} << 3;  ///< AVX-512 BF16; implies AVX-512

}  // namespace refrain::backend
