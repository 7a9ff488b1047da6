// Elsewhere than on x86-64 there are no bits yet.
#include "refrain/backend/cpu/features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace refrain::backend::cpu {

namespace {

bool has(uint32_t word, uint32_t bit) { return (word >> bit & 1u) != 0; }

}  // namespace

uint64_t features_of(const std::function<CpuidWords(uint32_t leaf, uint32_t subleaf)>& cpuid,
                     const std::function<uint64_t()>& saved_registers) {
  const uint32_t c = cpuid(1, 0).ecx;
  const bool fma = has(c, 12), osxsave = has(c, 27), avx = has(c, 28), f16c = has(c, 29);
  if (!osxsave || !avx) return 0;
  const uint64_t saved = saved_registers();
  constexpr uint64_t kYmm = 0x6, kZmm = 0xE6;  // SSE and AVX state; and opmask with both halves of ZMM
  const CpuidWords extended = cpuid(7, 0);
  const uint32_t b = extended.ebx;
  if ((saved & kYmm) != kYmm || !has(b, 5) || !fma || !f16c) return 0;
  uint64_t features = kFeatureAvx2;
  const bool avx512 = has(b, 16) && has(b, 17) && has(b, 28) && has(b, 30) && has(b, 31);
  if (avx512 && (saved & kZmm) == kZmm) {
    features |= kFeatureAvx512;
    if (has(extended.ecx, 11)) features |= kFeatureAvx512Vnni;
    const uint32_t last_subleaf = extended.eax;
    if (last_subleaf >= 1 && has(cpuid(7, 1).eax, 5)) features |= kFeatureAvx512Bf16;
  }
  return features;
}

#if defined(__x86_64__)
uint64_t detect_features() {
  const auto cpuid = [](uint32_t leaf, uint32_t subleaf) {
    CpuidWords words;
    __get_cpuid_count(leaf, subleaf, &words.eax, &words.ebx, &words.ecx, &words.edx);
    return words;
  };
  const auto saved_registers = [] {
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t{high} << 32) | low;
  };
  return features_of(cpuid, saved_registers);
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
