// Feature bits, as in DeviceInfo::features and Kernel::needs: of each kind of backend its own.
#pragma once

#include <cstdint>

namespace refrain::backend {

// Of host processors: each bit says that the instructions exist and that the operating system saves their registers.
inline constexpr uint64_t kFeatureAvx2 = uint64_t{1} << 0;    ///< AVX2, FMA and F16C
inline constexpr uint64_t kFeatureAvx512 = uint64_t{1} << 1;  ///< AVX-512 F, BW, CD, DQ and VL; implies AVX2
inline constexpr uint64_t kFeatureAvx512Vnni = uint64_t{1} << 2;  ///< AVX-512 VNNI; implies AVX-512
inline constexpr uint64_t kFeatureAvx512Bf16 = uint64_t{1} << 3;  ///< AVX-512 BF16; implies AVX-512

// Of CUDA.
inline constexpr uint64_t kFeatureHopper = uint64_t{1} << 0;  ///< compute capability 9.0

}  // namespace refrain::backend
