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

Slot slot_of(const Sampling& sampling) {
  Slot slot;
  slot.mask = sampling.mask;
  slot.top_k = sampling.top_k;
  slot.temperature = sampling.temperature;
  slot.top_p = sampling.top_p;
  slot.seed = sampling.seed;
  return slot;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

bool is_set(const std::atomic<bool>* cancel) {
  return cancel != nullptr && cancel->load(std::memory_order_relaxed);
}

/// Submits positions [begin, end) of `ids` in slot 0, with outputs from `first_output` on.
Point submit_chunk(ModelRunner& runner, std::span<const uint32_t> ids, size_t begin, size_t end,
                   size_t first_output) {
  const StepRequest request{.slot = 0, .rows = static_cast<uint32_t>(end - begin)};
  std::vector<uint32_t> outputs;
  for (size_t position = std::max(begin, first_output); position < end; ++position)
    outputs.push_back(static_cast<uint32_t>(position - begin));
  return runner.submit({std::span(&request, 1), ids.subspan(begin, end - begin), outputs});
}

/// Decode steps of slot 0 that are on their way.
class StepsAhead {
 public:
  StepsAhead(ModelRunner& runner, uint64_t steps, uint32_t most)
      : runner_(runner), left_(steps), points_(most) {}

  /// Submits as many as there may be.
  void fill() {
    for (; left_ != 0 && end_ - begin_ < points_.size(); --left_, ++end_) {
      constexpr StepRequest kAhead{.slot = 0, .rows = 1};
      constexpr uint32_t kToken = ops::kLastToken, kOutput = 0;
      points_[end_ % points_.size()] =
          end_ == 0 ? runner_.submit({std::span(&kAhead, 1), std::span(&kToken, 1), std::span(&kOutput, 1)})
                    : runner_.submit_next();
    }
  }
  /// The oldest; there is one.
  Point take() { return points_[begin_++ % points_.size()]; }
  bool empty() const { return begin_ == end_; }

 private:
  ModelRunner& runner_;
  uint64_t left_;
  std::vector<Point> points_;  // a ring
  size_t begin_ = 0, end_ = 0;
};

constexpr std::chrono::minutes kStepTimeout{10};

}  // namespace

void check_generate(const ModelRunner& runner, std::span<const uint32_t> prompt,
                    const GenerateOptions& options) {
  check_ids(runner, prompt);
  check_sampling(options.sampling);
  if (options.steps_in_flight == 0) throw InvalidArgument("steps in flight: expected at least 1, got 0");
  if (options.stop_ids.size() > ops::kStopIds) {
    throw InvalidArgument(
        fmt::format("stop ids: expected at most {}, got {}", ops::kStopIds, options.stop_ids.size()));
  }
}

GenerateResult generate(ModelRunner& runner, std::span<const uint32_t> prompt,
                        const GenerateOptions& options) {
  check_generate(runner, prompt, options);
  GenerateResult result;
  result.prompt_tokens = static_cast<uint32_t>(prompt.size());
  if (options.max_tokens == 0) return result;

  // The last token is not cached, so a sequence ends one token behind its length.
  const uint64_t limit =
      std::min<uint64_t>(uint64_t{prompt.size()} + options.max_tokens - 1, runner.context_tokens());
  Slot slot = slot_of(options.sampling);
  slot.limit = static_cast<uint32_t>(limit);
  slot.stop_set = 0;
  runner.set_stop_set(0, options.stop_ids);
  runner.set_slot(0, slot);
  runner.discard_results();

  auto begin = std::chrono::steady_clock::now();
  Point point;
  for (size_t at = 0; at < prompt.size();) {
    if (at != 0) runner.wait();
    if (is_set(options.cancel)) {
      result.reason = StopReason::cancelled;
      return result;
    }
    const size_t end = std::min(prompt.size(), at + runner.max_rows());
    point = submit_chunk(runner, prompt, at, end, prompt.size() - 1);
    at = end;
  }
  // From here on the device goes on by itself; the host only looks at what was drawn.
  StepsAhead ahead(runner, limit - prompt.size(), options.steps_in_flight);
  ahead.fill();
  while (true) {
    runner.device().wait(point, kStepTimeout);
    const auto now = std::chrono::steady_clock::now();
    if (result.generated_tokens == 0) {
      result.prompt_s = std::chrono::duration<double>(now - begin).count();
      begin = now;
    }
    StepResult drawn;
    if (!runner.next(drawn) || drawn.token == ops::kNoToken) {
      runner.wait();  // says what is wrong
      throw Error("[generate] a step drew no token");
    }
    if ((drawn.bits & ops::kStopId) != 0) {
      result.reason = StopReason::stop_id;
      break;
    }
    ++result.generated_tokens;
    if (options.on_token && !options.on_token(drawn.token)) {
      result.reason = StopReason::callback;
      break;
    }
    if (result.generated_tokens == options.max_tokens) break;
    if (ahead.empty()) {
      result.reason = StopReason::context;
      break;
    }
    if (is_set(options.cancel)) {
      result.reason = StopReason::cancelled;
      break;
    }
    point = ahead.take();
    ahead.fill();
  }
  result.decode_s = seconds_since(begin);
  runner.wait();
  return result;
}

bool evaluate(ModelRunner& runner, std::span<const uint32_t> ids, size_t first,
              const std::function<void(size_t, std::span<const float>)>& on_logits,
              const std::atomic<bool>* cancel) {
  check_ids(runner, ids);
  runner.set_slot(0, {});
  for (size_t at = 0; at < ids.size();) {
    if (is_set(cancel)) return false;
    const size_t outputs_end = std::max(at, first) + runner.max_outputs();
    const size_t end = std::min({ids.size(), at + runner.max_rows(), outputs_end});
    submit_chunk(runner, ids, at, end, first);
    runner.wait();
    for (size_t position = std::max(at, first); position < end; ++position) {
      on_logits(position, runner.logits(static_cast<uint32_t>(position - std::max(at, first))));
    }
    at = end;
  }
  return true;
}

}  // namespace refrain::model
