// Finds which bits of backend/features.h the machine has, and names them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "refrain/backend/features.h"

namespace refrain::backend::cpu {

/// What CPUID says of one leaf and subleaf; zeros where there is no such leaf.
struct CpuidWords {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

/// The bits of a machine. `saved_registers` reads XCR0, the register files that the operating system saves on a
/// context switch; it is called only where CPUID says that it may be.
uint64_t features_of(const std::function<CpuidWords(uint32_t leaf, uint32_t subleaf)>& cpuid,
                     const std::function<uint64_t()>& saved_registers);

/// The bits of the machine that this runs on.
uint64_t detect_features();

/// `avx2, avx512`; `portable` when there is none.
std::string describe_features(uint64_t features);

}  // namespace refrain::backend::cpu
