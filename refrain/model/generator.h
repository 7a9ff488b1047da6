// Text generation for one sequence: the prompt in chunks, then token by token.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "refrain/model/model_runner.h"

namespace refrain::model {

struct Sampling {
  float temperature = 0;  ///< 0: the most probable token
  uint32_t top_k = 0;     ///< 0: off
  float top_p = 1;        ///< 1: off
  uint64_t seed = 0;
  uint32_t mask = ops::kNoTable;  ///< of the runner's: the ids that may be drawn; kNoTable: all
};

struct GenerateOptions {
  uint32_t max_tokens = 256;
  Sampling sampling;
  std::vector<uint32_t> stop_ids;  ///< at most 16; generation ends when one is drawn; it is not delivered
  uint32_t steps_in_flight = 2;    ///< at least 1; tokens that the device may be ahead of `on_token`
  /// Called with each id as it comes; false ends the generation.
  std::function<bool(uint32_t id)> on_token;
  const std::atomic<bool>* cancel = nullptr;  ///< looked at before each token
};

enum class StopReason { stop_id, max_tokens, context, callback, cancelled };

struct GenerateResult {
  StopReason reason = StopReason::max_tokens;
  uint32_t prompt_tokens = 0;
  uint32_t generated_tokens = 0;  ///< delivered
  double prompt_s = 0;            ///< until the first token was drawn
  double decode_s = 0;            ///< for all further ones
};

/// Throws InvalidArgument for an empty prompt, ids outside the vocabulary, a prompt longer than the context,
/// or a parameter out of range.
void check_generate(const ModelRunner& runner, std::span<const uint32_t> prompt,
                    const GenerateOptions& options);

/// Continues `prompt` in slot 0 of `runner`, from position 0, with its stop set 0. The device goes from the prompt's
/// last row to the first token's, and from token to token, by itself; each is delivered when its step has
/// ended. Waits for steps in flight, and forgets their results. Throws as check_generate.
GenerateResult generate(ModelRunner& runner, std::span<const uint32_t> prompt,
                        const GenerateOptions& options);

/// Computes `ids` in slot 0 from position 0, in chunks as large as the runner takes, and delivers
/// the logits f32 [vocab] of every position from `first` on, in order. Whether it came to the end: `cancel` is looked at
/// before each chunk. Throws as generate.
bool evaluate(ModelRunner& runner, std::span<const uint32_t> ids, size_t first,
              const std::function<void(size_t position, std::span<const float> logits)>& on_logits,
              const std::atomic<bool>* cancel = nullptr);

}  // namespace refrain::model
