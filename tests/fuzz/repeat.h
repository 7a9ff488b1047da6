// How long campaigns go on: for REFRAIN_FUZZ_SECONDS, and for a moment without that variable. REFRAIN_FUZZ_SEED, a number
// below 400, asks for other random things, so that several campaigns can run side by side.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <utility>

namespace refrain::null_tests {

inline bool campaign() { return std::getenv("REFRAIN_FUZZ_SECONDS") != nullptr; }

/// The first of ten million seeds.
inline uint32_t first_seed() {
  const char* number = std::getenv("REFRAIN_FUZZ_SEED");
  return number != nullptr ? 10'000'000 * static_cast<uint32_t>(std::strtoul(number, nullptr, 10)) : 0;
}

/// Calls `step` with a new number, `times` times or in a campaign until its share of the time is over.
template <class Step>
void repeat(double share, uint32_t times, const Step& step) {
  using std::chrono::steady_clock;
  uint32_t i = 0;
  if (campaign()) {
    const std::chrono::duration<double> time(share *
                                             std::strtod(std::getenv("REFRAIN_FUZZ_SECONDS"), nullptr));
    const auto begin = steady_clock::now();
    while (steady_clock::now() - begin < time && !testing::Test::HasFatalFailure()) step(i++);
  } else {
    while (i < times && !testing::Test::HasFatalFailure()) step(i++);
  }
  testing::Test::RecordProperty("cases", std::to_string(i));
  if (campaign()) std::printf("cases %u\n", i);
}

/// What a campaign has done.
inline void report(std::span<const std::pair<const char*, uint64_t>> figures) {
  for (const auto& [name, value] : figures) {
    testing::Test::RecordProperty(name, std::to_string(value));
    if (campaign()) std::printf("%s %llu\n", name, static_cast<unsigned long long>(value));
  }
}

}  // namespace refrain::null_tests
