#include "refrain/model/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "refrain/core/error.h"

namespace refrain::model {
namespace {

void check_ids(const ModelRunner& runner, std::span<const uint32_t> ids) {
  if (ids.empty()) throw InvalidArgument("prompt: expected at least one token, got none");
  if (ids.size() > runner.context_tokens()) {
    throw InvalidArgument(fmt::format("prompt: expected at most {} tokens, the context, got {}",
                                      runner.context_tokens(), ids.size()));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= runner.config().vocab) {
      throw InvalidArgument(fmt::format("prompt: token {}: expected an id below the vocabulary's {}, got {}",
                                        i, runner.config().vocab, ids[i]));
    }
  }
}

void check_sampling(const Sampling& sampling) {
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) {
    throw InvalidArgument(fmt::format("temperature: expected a number >= 0, got {}", sampling.temperature));
  }
  if (!(sampling.top_p >= 0 && sampling.top_p <= 1)) {
    throw InvalidArgument(fmt::format("top-p: expected a number in [0, 1], got {}", sampling.top_p));
  }
}

StepSequence sequence_state(const ModelRunner& runner, const Sampling& sampling, uint32_t length) {
  StepSequence sequence = runner.sequence(0, length);
  sequence.top_k = sampling.top_k;
  sequence.temperature = sampling.temperature;
  sequence.top_p = sampling.top_p;
  sequence.seed = sampling.seed;
  return sequence;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

bool cancelled(const GenerateOptions& options) {
  return options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed);
}

/// One chunk of a prompt: which positions of `ids`, and from which of them on logits are wanted.
struct Chunk {
  size_t begin = 0;
  size_t end = 0;
  size_t first_output = 0;
};

/// Submits a chunk and waits for it.
void run_chunk(ModelRunner& runner, std::span<const uint32_t> ids, const Chunk& chunk,
               const Sampling& sampling) {
  std::vector<StepRow> rows;
  std::vector<uint32_t> outputs;
  for (size_t position = chunk.begin; position < chunk.end; ++position) {
    if (position >= chunk.first_output) outputs.push_back(static_cast<uint32_t>(rows.size()));
    rows.push_back({ids[position], static_cast<uint32_t>(position), 0, 0});
  }
  const StepSequence sequence = sequence_state(runner, sampling, static_cast<uint32_t>(chunk.end));
  runner.submit({rows, std::span(&sequence, 1), outputs});
  runner.wait();
}

}  // namespace

void check_generate(const ModelRunner& runner, std::span<const uint32_t> prompt, const Sampling& sampling) {
  check_ids(runner, prompt);
  check_sampling(sampling);
}

GenerateResult generate(ModelRunner& runner, std::span<const uint32_t> prompt,
                        const GenerateOptions& options) {
  check_generate(runner, prompt, options.sampling);
  GenerateResult result;
  result.prompt_tokens = static_cast<uint32_t>(prompt.size());
  if (options.max_tokens == 0) return result;

  auto begin = std::chrono::steady_clock::now();
  for (size_t at = 0; at < prompt.size();) {
    if (cancelled(options)) {
      result.reason = StopReason::cancelled;
      return result;
    }
    const size_t end = std::min(prompt.size(), at + runner.max_rows());
    run_chunk(runner, prompt, {at, end, prompt.size() - 1}, options.sampling);
    at = end;
  }
  const auto last_row = static_cast<uint32_t>((prompt.size() - 1) % runner.max_rows());
  uint32_t token = runner.sampled(last_row);
  result.prompt_s = seconds_since(begin);

  begin = std::chrono::steady_clock::now();
  // From here on the device moves itself forward; the host only looks at what was drawn.
  for (uint32_t position = result.prompt_tokens;; ++position) {
    if (std::ranges::find(options.stop_ids, token) != options.stop_ids.end()) {
      result.reason = StopReason::stop_id;
      break;
    }
    ++result.generated_tokens;
    if (options.on_token && !options.on_token(token)) {
      result.reason = StopReason::callback;
      break;
    }
    if (result.generated_tokens == options.max_tokens) break;
    if (position == runner.context_tokens()) {
      result.reason = StopReason::context;
      break;
    }
    if (cancelled(options)) {
      result.reason = StopReason::cancelled;
      break;
    }
    if (position == result.prompt_tokens) {
      const StepRow row{token, position, 0, 0};
      const StepSequence sequence = sequence_state(runner, options.sampling, position + 1);
      const uint32_t output = 0;
      runner.submit({std::span(&row, 1), std::span(&sequence, 1), std::span(&output, 1)});
    } else {
      runner.submit_next();
    }
    runner.wait();
    token = runner.sampled(0);
  }
  result.decode_s = seconds_since(begin);
  return result;
}

void evaluate(ModelRunner& runner, std::span<const uint32_t> ids, size_t first,
              const std::function<void(size_t, std::span<const float>)>& on_logits) {
  check_ids(runner, ids);
  for (size_t at = 0; at < ids.size();) {
    const size_t end = std::min(ids.size(), at + runner.max_rows());
    run_chunk(runner, ids, {at, end, first}, {});
    for (size_t position = std::max(at, first); position < end; ++position) {
      on_logits(position, runner.logits(static_cast<uint32_t>(position - std::max(at, first))));
    }
    at = end;
  }
}

}  // namespace refrain::model
