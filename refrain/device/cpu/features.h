// The bits of DeviceInfo::features and Kernel::needs on the CPU backend, and how they are found.
#pragma once

#include <cstdint>
#include <string>

namespace refrain::device::cpu {

/// Each bit says that the instructions exist and that the operating system saves their registers.
enum Feature : uint64_t {
  kAvx2 = uint64_t{1} << 0,        ///< AVX2, FMA and F16C
  kAvx512 = uint64_t{1} << 1,      ///< AVX-512 F, BW, CD, DQ and VL; implies kAvx2
  kAvx512Vnni = uint64_t{1} << 2,  ///< AVX-512 VNNI; implies kAvx512
  kAvx512Bf16 = uint64_t{1} << 3,  ///< AVX-512 BF16; implies kAvx512
};

/// The bits of the machine that this runs on.
uint64_t detect_features();

/// `avx2, avx512`; `portable` when there is none.
std::string describe_features(uint64_t features);

}  // namespace refrain::device::cpu
