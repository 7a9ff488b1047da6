// A model as replayable programs: one per capacity of rows, sharing weights, cache and arena.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "refrain/model/kv_cache.h"
#include "refrain/model/model.h"
#include "refrain/model/step.h"

namespace refrain::model {

struct RunnerOptions {
  uint32_t context_tokens = 0;  ///< positions cached for each sequence; 0: the model's context
  uint32_t sequences = 1;       ///< that may be cached at once
  /// Rows that one submission can take, ascending: a program each.
  std::vector<uint32_t> capacities = {1, 64};
  /// Bit i allows id i to be sampled; empty: all. u32 [ceil(vocab / 32)].
  std::vector<uint32_t> allowed_ids = {};
  PlanOptions plan = {};
};

/// Records the model once for each capacity; afterwards nothing is recorded or allocated. One thread at a
/// time.
///
/// A step is a ragged batch: rows of any sequences in any mixture. A row gets the same bits whatever rows it
/// is computed with, whatever the capacity. Each program ends by making the sampled tokens the next step's,
/// so that a decode loop submits the same program again and again.
class ModelRunner {
 public:
  ModelRunner(const Model& model, const RunnerOptions& options);

  /// Queues one step in the program with the least capacity that holds it. Positions of a sequence are cached
  /// up to its `length`; rows of one sequence come in ascending position. Throws InvalidArgument when no
  /// capacity holds the rows, or two of them are one position of one sequence.
  Point submit(const Batch& batch);
  /// Queues the last step's program once more as it stands: each of its rows takes its sampled token and the
  /// next position. Every row of that step had an output. Sends nothing.
  Point submit_next();

  /// Waits for all steps. Throws InvalidArgument naming the sequence when the device met a value out of
  /// range, or logits that are not finite, in any step since the last wait.
  void wait(std::chrono::nanoseconds timeout = std::chrono::minutes(10));
  /// After wait(): f32 [vocab], the logits of the o-th output of the last step. Read from the device where its
  /// memory is not the host's; valid until the next call.
  std::span<const float> logits(uint32_t output) const;
  /// After wait(): the id drawn for row `row` of the last step.
  uint32_t sampled(uint32_t row) const;

  const Config& config() const { return model_.config(); }
  uint32_t context_tokens() const { return context_tokens_; }
  uint32_t max_rows() const { return members_.back().step.layout.rows; }
  /// The state of sequence `index` with `length` positions cached after a step: its pages, and greedy
  /// sampling.
  StepSequence sequence(uint32_t index, uint32_t length) const;
  size_t arena_bytes() const { return arena_ ? arena_.bytes() : 0; }
  Device& device() { return device_; }

  /// What planning did for the program of each capacity.
  const PlanReport& report(size_t member) const { return members_[member].report; }
  const Program& program(size_t member) const { return members_[member].program; }

 private:
  struct Member {
    StepBlock step;
    Buffer status;           // u32 [sequences of this capacity + 1], in memory of the host
    Buffer tokens;           // u32 [rows], drawn by the last step, in memory of the host
    bool submitted = false;  // since the last wait
    Plan plan;
    PlanReport report;
    Program program;
  };

  Member record(const RunnerOptions& options, uint32_t rows);

  Device device_;
  Model model_;
  uint32_t context_tokens_;
  KvCache cache_;
  Buffer logits_;   // f32 [greatest capacity, vocab]
  Buffer allowed_;  // u32 [ceil(vocab / 32)], or none
  Buffer arena_;
  std::vector<Member> members_;
  std::vector<std::byte> image_;             // of the step block being sent
  mutable std::vector<float> logits_image_;  // of the row that was asked for
  Member* last_ = nullptr;
  Point last_point_;
};

}  // namespace refrain::model
