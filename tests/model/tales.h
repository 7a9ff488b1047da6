// The embedded story model for tests: opened, and driven step by step.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/model/generator.h"
#include "refrain/model/model.h"
#include "refrain/model/model_runner.h"
#include "refrain/refrain.h"

namespace refrain::test {

inline constexpr const char* kTales = "models/tales-qwen3-4bit";

// ThreadSanitizer sees no access of 32 bytes, so under it the portable kernels stand in for the vectorised
// ones.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
inline constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
inline constexpr bool kThreadSanitizer = false;
#endif

/// The device of these tests: REFRAIN_TEST_DEVICE, else the CPU.
inline const char* device_name() {
  const char* name = std::getenv("REFRAIN_TEST_DEVICE");
  return name != nullptr ? name : "cpu";
}

/// The arithmetic of these tests: fast where REFRAIN_TEST_MODE says so.
inline graph::Mode mode() {
  const char* name = std::getenv("REFRAIN_TEST_MODE");
  return name != nullptr && std::string_view(name) == "fast" ? graph::Mode::fast : graph::Mode::exact;
}

/// Tests of every type of the cache: RunnerOptions::cache is the parameter.
class EachCache : public ::testing::TestWithParam<DType> {};
inline std::string cache_name(const ::testing::TestParamInfo<DType>& test) {
  return std::string(name(test.param));
}

inline model::Model open_tales(uint32_t threads, bool validate = true, bool portable = kThreadSanitizer) {
  DeviceOptions options;
  options.threads = threads;
  options.portable_kernels = portable;
  options.validate = validate;
  return model::Model::load(Device::open(device_name(), options), kTales,
                            {.mode = mode(), .progress = {}, .log = {}});
}

/// A prompt of `count` ids with no meaning: every id is below the vocabulary, most differ.
inline std::vector<uint32_t> some_ids(size_t count, uint32_t seed = 1) {
  std::vector<uint32_t> ids;
  uint32_t state = seed;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    ids.push_back(3 + (state >> 8) % 1400);
  }
  return ids;
}

/// One step of one slot: `tokens` from `position` on, with an output for each of the last `outputs` of them.
inline Point submit_tokens(model::ModelRunner& runner, uint32_t slot, std::span<const uint32_t> tokens,
                           uint32_t outputs = 1, uint32_t position = ops::kAtLength) {
  const auto rows = static_cast<uint32_t>(tokens.size());
  const model::StepRequest request{.slot = slot, .rows = rows, .position = position};
  std::vector<uint32_t> wanted;
  for (uint32_t row = rows - outputs; row < rows; ++row) wanted.push_back(row);
  return runner.submit({{&request, 1}, tokens, wanted});
}

/// One step that goes on from each of the first `slots` slots by one token.
inline Point submit_ahead(model::ModelRunner& runner, uint32_t slots = 1) {
  std::vector<model::StepRequest> requests;
  std::vector<uint32_t> outputs;
  for (uint32_t s = 0; s < slots; ++s) {
    requests.push_back({.slot = s, .rows = 1});
    outputs.push_back(s);
  }
  const std::vector<uint32_t> tokens(slots, ops::kLastToken);
  return runner.submit({requests, tokens, outputs});
}

/// The logits of every position of `ids`, row-major.
inline std::vector<float> all_logits(model::ModelRunner& runner, std::span<const uint32_t> ids) {
  std::vector<float> logits;
  model::evaluate(runner, ids, 0, [&](size_t, std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  });
  return logits;
}

}  // namespace refrain::test
