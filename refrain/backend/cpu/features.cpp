// Reads CPUID and XGETBV once per call; elsewhere than on x86-64 there are no bits yet.
#include "refrain/backend/cpu/features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace refrain::backend::cpu {

#if defined(__x86_64__)
namespace {

// XCR0: the register files that the operating system saves on a context switch.
uint64_t saved_registers() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

bool has(uint32_t word, uint32_t bit) { return (word >> bit & 1u) != 0; }

}  // namespace

uint64_t detect_features() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return 0;
  const bool fma = has(c, 12), osxsave = has(c, 27), avx = has(c, 28), f16c = has(c, 29);
  if (!osxsave || !avx) return 0;
  const uint64_t saved = saved_registers();
  constexpr uint64_t kYmm = 0x6, kZmm = 0xE6;  // SSE and AVX state; and opmask with both halves of ZMM
  if ((saved & kYmm) != kYmm) return 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return 0;
  const uint32_t subleaves = a;
  uint64_t features = 0;
  if (has(b, 5) && fma && f16c) features |= kFeatureAvx2;
  const bool avx512 = has(b, 16) && has(b, 17) && has(b, 28) && has(b, 30) && has(b, 31);
  if ((features & kFeatureAvx2) != 0 && avx512 && (saved & kZmm) == kZmm) {
    features |= kFeatureAvx512;
    if (has(c, 11)) features |= kFeatureAvx512Vnni;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && has(a, 5))
      features |= kFeatureAvx512Bf16;
  }
  return features;
}
#else
uint64_t detect_features() { return 0; }
#endif

std::string describe_features(uint64_t features) {
  static constexpr struct {
    uint64_t bit;
    const char* name;
  } kNames[] = {{kFeatureAvx2, "avx2"},
                {kFeatureAvx512, "avx512"},
                {kFeatureAvx512Vnni, "avx512_vnni"},
                {kFeatureAvx512Bf16, "avx512_bf16"}};
  std::string text;
  for (const auto& entry : kNames) {
    if ((features & entry.bit) == 0) continue;
    if (!text.empty()) text += ", ";
    text += entry.name;
  }
  return text.empty() ? "portable" : text;
}

}  // namespace refrain::backend::cpu
