// A model as replayable programs: one per capacity of rows, sharing weights, slots, cache and arena.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "refrain/model/kv_cache.h"
#include "refrain/model/model.h"
#include "refrain/model/slots.h"
#include "refrain/model/step.h"

namespace refrain::model {

struct RunnerOptions {
  uint32_t context_tokens = 0;  ///< positions cached for each slot; 0: the model's context
  uint32_t slots = 1;           ///< sequences that may be cached at once
  /// Rows that one submission can take, ascending: a program each. Empty: what suits the device, 1 and 64, on a GPU
  /// 1, 8, 64 and 512.
  std::vector<uint32_t> capacities = {};
  uint32_t outputs = 0;    ///< rows of one submission whose logits are wanted; 0: as many as slots
  uint32_t masks = 0;      ///< of ids that may be drawn; all admit all, until set_mask
  uint32_t stop_sets = 1;  ///< of ids that stop a slot; all empty, until set_stop_set
  PlanOptions plan = {};   ///< but for the mode, which is the model's
  /// Of cached keys and values, f32 or f16; unset: the mode's, ModeTypes::cache. f16 takes half the memory and half the
  /// reading, and rounds what it keeps to 11 bits (see kv_write); the arithmetic stays the mode's.
  std::optional<DType> cache = std::nullopt;
};

/// Records the model once for each capacity; afterwards nothing is recorded or allocated. One thread at a
/// time.
///
/// A step is a ragged batch: rows of any slots in any mixture. A row gets the same bits whatever rows it is
/// computed with, whatever the capacity. A slot knows where it is and what it drew last, so a step whose requests
/// begin with kLastToken goes on by itself: submitted k times it makes k tokens a slot, the host not in between, and
/// a slot that has drawn a stop id, or has reached its limit or the context's end, computes nothing more.
class ModelRunner {
 public:
  ModelRunner(const Model& model, RunnerOptions options);

  // What the next step and those after it find; steps submitted before do not see it. Each throws InvalidArgument
  // for what does not exist.
  void set_slot(uint32_t slot, const Slot& value) { slots_.set(slot, value); }
  /// Entries of the page table of a cache group, from page `first` of the slot on. Slots may share pages that hold the
  /// same tokens at the same positions. At first, slot s has the s-th part of all pages.
  void set_pages(uint32_t group, uint32_t slot, uint32_t first, std::span<const uint32_t> pages) {
    slots_.set_pages(group, slot, first, pages);
  }
  /// u32 [ceil(vocab / 32)], bit i admits id i.
  void set_mask(uint32_t index, std::span<const uint32_t> words) { slots_.set_mask(index, words); }
  void set_stop_set(uint32_t index, std::span<const uint32_t> ids) { slots_.set_stop_set(index, ids); }

  /// Queues one step in the program with the least capacity that holds it. Throws InvalidArgument when none does, or
  /// for a batch that contradicts itself. May wait, for the oldest steps in flight, when their results would
  /// not fit into the ring.
  Point submit(const Batch& batch);
  /// Queues the last step once more as it stands: each slot goes on by one token. Sends nothing, unless
  /// something was set. Throws InvalidArgument unless each request of that step is one row, kLastToken.
  Point submit_next();

  /// Takes the next result that the device has told, also while later steps are in flight; false: there is
  /// none yet. In the order of steps, in a step in that of its requests. Throws Error when results were
  /// overwritten: the ring holds those of 16 full steps or more.
  bool next(StepResult& result);
  /// Waits until no step is in flight, and forgets their results; one that the device refused is no error here.
  void discard_results();

  /// Waits for all steps. Throws InvalidArgument naming the slot when the device met a value out of range, or
  /// logits that are not finite, in any step since the last wait.
  void wait(std::chrono::nanoseconds timeout = std::chrono::minutes(10));
  /// After wait(): f32 [vocab], the logits of the o-th output of the last step. Read from the device where its
  /// memory is not the host's; valid until the next call.
  std::span<const float> logits(uint32_t output) const;
  /// After wait(): the id drawn after token `row` of the last step; kNoToken: none was. Read as logits are;
  /// next() takes no copy.
  uint32_t sampled(uint32_t row) const;

  const Config& config() const { return model_.config(); }
  uint32_t context_tokens() const { return context_tokens_; }
  uint32_t max_rows() const { return members_.back().step.layout.rows; }
  uint32_t max_outputs() const { return members_.back().step.layout.outputs; }
  const Slots& slots() const { return slots_; }
  const KvCache& cache() const { return cache_; }
  size_t arena_bytes() const { return arena_ ? arena_.bytes() : 0; }
  /// That the last submission sent to the device.
  size_t sent_bytes() const { return sent_bytes_; }
  Device& device() { return device_; }

  /// What planning did for the program of each capacity.
  const PlanReport& report(size_t member) const { return members_[member].report; }
  const Program& program(size_t member) const { return members_[member].program; }
  const StepBlock& step(size_t member) const { return members_[member].step; }

 private:
  struct Member {
    StepBlock step;
    Plan plan;
    PlanReport report;
    Program program;
  };

  ModelRunner(const RunnerOptions& completed, const Model& model);
  Member record(const RunnerOptions& options, const StepLayout& layout);
  Point send(Member& member);
  void note_failures();

  Device device_;
  Model model_;
  uint32_t context_tokens_;
  KvCache cache_;
  Slots slots_;
  Buffer logits_;  // f32 [greatest outputs, vocab]
  Buffer arena_;
  std::vector<Member> members_;
  StepImage image_;
  mutable std::vector<float> logits_image_;  // of the row that was asked for
  std::vector<Update> updates_;              // of the submission being made
  size_t sent_bytes_ = 0;
  Member* last_ = nullptr;
  bool goes_on_ = false;  // the last step can be submitted again
  Point last_point_;
  uint32_t submitted_ = 0;  // steps, as the ring counts them
  uint32_t checked_ = 0;    // results that have been looked at for failures
  uint32_t read_ = 0;       // results that next() has given
  std::string failure_;     // the first since the last wait
};

}  // namespace refrain::model
