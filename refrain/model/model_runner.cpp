#include "refrain/model/model_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <tuple>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/graph/numerics.h"

namespace refrain::model {
namespace {

uint32_t cached_tokens(const Config& config, const RunnerOptions& options) {
  if (options.context_tokens > config.context_tokens) {
    throw InvalidArgument(fmt::format("[model_runner] context: the model's is {} tokens, got {}",
                                      config.context_tokens, options.context_tokens));
  }
  return options.context_tokens != 0 ? options.context_tokens : config.context_tokens;
}

/// With capacities that are checked.
RunnerOptions completed(RunnerOptions options, const backend::DeviceInfo& device) {
  std::vector<uint32_t>& capacities = options.capacities;
  // What a GPU reads it shares among more rows than a CPU.
  if (capacities.empty())
    capacities = device.composes ? std::vector{1u, 64u} : std::vector{1u, 8u, 64u, 512u};
  const bool ascending = std::ranges::adjacent_find(capacities, std::greater_equal<>()) == capacities.end();
  if (capacities.front() == 0 || !ascending)
    throw InvalidArgument("[model_runner] capacities: expected ascending numbers of rows");
  return options;
}

/// Capacities of a program of `rows` rows.
StepLayout layout_of(const RunnerOptions& options, uint32_t rows) {
  const uint32_t outputs = options.outputs != 0 ? options.outputs : options.slots;
  return {rows, std::min(rows, options.slots), std::min(rows, outputs)};
}

/// A segment gives one result, and what is of no slot another one.
uint32_t results_of(const StepLayout& layout) { return layout.segments + 1; }

SlotsLayout slots_layout(const RunnerOptions& options, uint32_t vocab) {
  SlotsLayout layout;
  layout.slots = options.slots;
  layout.masks = options.masks;
  layout.mask_words = ceil_div(vocab, 32u);
  layout.stop_sets = options.stop_sets;
  // Those of 16 steps of all slots; of one slot, about as many as may be in flight.
  const uint32_t most = results_of(layout_of(options, options.capacities.back()));
  layout.ring_entries = std::bit_ceil(std::max(2048u, 16 * most));
  return layout;
}

std::string describe_status(uint32_t bits) {
  constexpr std::pair<uint32_t, const char*> kTexts[] = {
      {ops::kTokenOutOfRange, "a token id outside the vocabulary"},
      {ops::kPositionOutOfRange, "a position past its length or the cache"},
      {ops::kPageOutOfRange, "a cache page out of range"},
      {ops::kSlotOutOfRange, "a row of a slot that does not exist"},
      {ops::kOutputOutOfRange, "an output of a row that is not live"},
      {ops::kNotFinite, "logits that are not finite, from weights that are not or from overflow"},
      {ops::kTableOutOfRange, "a mask or stop set that does not exist"},
  };
  std::string text;
  for (const auto& [bit, what] : kTexts) {
    if ((bits & bit) != 0) text += (text.empty() ? "" : ", ") + std::string(what);
  }
  return text.empty() ? fmt::format("status {:#x}", bits) : text;
}

}  // namespace

ModelRunner::ModelRunner(const Model& model, RunnerOptions options)
    : ModelRunner(completed(std::move(options), model.device().info()), model) {}

ModelRunner::ModelRunner(const RunnerOptions& options, const Model& model)
    : device_(model.device()),
      model_(model),
      context_tokens_(cached_tokens(model.config(), options)),
      cache_(device_, model.config(), options.slots, context_tokens_,
             options.cache.value_or(graph::types_of(model.mode()).cache)),
      slots_(device_, slots_layout(options, model.config().vocab), cache_),
      image_(layout_of(options, options.capacities.back()), options.slots) {
  const std::vector<uint32_t>& capacities = options.capacities;
  const StepLayout greatest = layout_of(options, capacities.back());
  logits_ = device_.buffer(DType::f32, {greatest.outputs, config().vocab}, "logits");
  updates_.reserve(16);

  members_.reserve(capacities.size());
  size_t arena_bytes = 0;
  for (const uint32_t rows : capacities) {
    members_.push_back(record(options, layout_of(options, rows)));
    for (const Member& member : members_) graph::require_same_numerics(member.report, members_.back().report);
    arena_bytes = std::max(arena_bytes, members_.back().plan.arena_bytes());
  }
  // Programs of one queue run one after the other, so one arena serves them all.
  arena_ = device_.buffer(DType::u8, {static_cast<int64_t>(arena_bytes)}, "arena");
  for (Member& member : members_) member.program = device_.prepare(member.plan, {.arena = arena_});
}

ModelRunner::Member ModelRunner::record(const RunnerOptions& options, const StepLayout& layout) {
  Member member{StepBlock(device_, layout), {}, {}, {}};
  const Buffer logits = logits_.slice(0, layout.outputs).with_live_rows(member.step.live_outputs);
  const Forward forward{member.step, slots_, cache_, logits, context_tokens_};
  CommandEncoder encoder = device_.encoder();
  record_begin(encoder, forward);
  model_.architecture().record(encoder, forward);
  record_end(encoder, forward);
  PlanOptions plan = options.plan;
  plan.mode = model_.mode();
  std::tie(member.plan, member.report) = device_.plan(encoder.finish(), plan);
  return member;
}

Point ModelRunner::submit(const Batch& batch) {
  const auto member = std::ranges::find_if(members_, [&](const Member& m) {
    const StepLayout& most = m.step.layout;
    return most.rows >= batch.tokens.size() && most.segments >= batch.requests.size() &&
           most.outputs >= batch.outputs.size();
  });
  if (member == members_.end()) {
    throw InvalidArgument(fmt::format(
        "[model_runner] batch: expected at most {} tokens, {} requests and {} outputs, got {}, {} and {}",
        max_rows(), members_.back().step.layout.segments, max_outputs(), batch.tokens.size(),
        batch.requests.size(), batch.outputs.size()));
  }
  member->step.encode(batch, image_);
  goes_on_ = batch.tokens.size() == batch.requests.size();
  for (const StepRequest& request : batch.requests) goes_on_ = goes_on_ && request.position == ops::kAtLength;
  for (const uint32_t token : batch.tokens) goes_on_ = goes_on_ && token == ops::kLastToken;
  updates_.clear();
  updates_.push_back(
      {member->step.block.slice(0, static_cast<int64_t>(image_.bytes.size() / 4)), image_.bytes});
  return send(*member);
}

Point ModelRunner::submit_next() {
  if (last_ == nullptr) throw InvalidArgument("[model_runner] submit_next: nothing was submitted before");
  if (!goes_on_) {
    throw InvalidArgument(
        "[model_runner] submit_next: expected a step whose requests are one row, kLastToken; the last one's "
        "are "
        "not");
  }
  updates_.clear();
  return send(*last_);
}

Point ModelRunner::send(Member& member) {
  note_failures();
  // No result may be overwritten before it has been looked at.
  const uint64_t most = results_of(members_.back().step.layout);
  if ((submitted_ - slots_.steps() + uint64_t{1}) * most > slots_.ring_entries()) {
    device_.wait(last_point_);
    note_failures();
  }
  slots_.take_pending(updates_);
  sent_bytes_ = 0;
  for (const Update& update : updates_) sent_bytes_ += update.from.size();
  last_ = &member;
  last_point_ = device_.submit(member.program, updates_);
  ++submitted_;
  return last_point_;
}

void ModelRunner::note_failures() {
  for (const uint32_t appended = slots_.appended(); checked_ != appended; ++checked_) {
    const StepResult result = slots_.result(checked_);
    const uint32_t bits = result.bits & ~(ops::kStopId | ops::kStopLimit | ops::kStopError);
    if (bits == 0 || !failure_.empty()) continue;
    const std::string who = result.slot == ops::kIdle ? "no slot" : fmt::format("slot {}", result.slot);
    failure_ = fmt::format("[step] {}: {}", who, describe_status(bits));
  }
}

bool ModelRunner::next(StepResult& result) {
  const uint32_t told = slots_.appended();
  if (read_ == told) return false;
  const uint64_t in_flight = uint64_t{submitted_ - slots_.steps()} * results_of(members_.back().step.layout);
  if (told - read_ + in_flight > slots_.ring_entries()) {
    throw Error(fmt::format("[model_runner] next: results were overwritten, {} behind; take them sooner",
                            told - read_));
  }
  result = slots_.result(read_++);
  return true;
}

void ModelRunner::discard_results() {
  if (submitted_ != slots_.steps()) {
    try {
      device_.wait(last_point_);
    } catch (const DeviceError&) {  // a step that failed has told nothing
    }
    submitted_ = slots_.steps();
  }
  read_ = slots_.appended();
}

void ModelRunner::wait(std::chrono::nanoseconds timeout) {
  if (last_ == nullptr) throw InvalidArgument("[model_runner] wait: nothing was submitted before");
  try {
    device_.wait(last_point_, timeout);
  } catch (const DeviceError&) {
    submitted_ = slots_.steps();  // a step that failed has not ended
    throw;
  }
  submitted_ = slots_.steps();
  note_failures();
  if (!failure_.empty()) throw InvalidArgument(std::exchange(failure_, {}));
}

std::span<const float> ModelRunner::logits(uint32_t output) const {
  const Buffer row = logits_.slice(output, 1);
  if (device_.info().host_memory) return row.span<const float>();
  logits_image_.resize(config().vocab);
  device_.read(row, std::as_writable_bytes(std::span(logits_image_)));
  return logits_image_;
}

uint32_t ModelRunner::sampled(uint32_t row) const {
  if (last_ == nullptr || row >= last_->step.layout.rows) {
    throw InvalidArgument(fmt::format("[model_runner] sampled: no row {} was submitted", row));
  }
  StepRow computed;
  device_.read(last_->step.rows.slice(row, 1), std::as_writable_bytes(std::span(&computed, 1)));
  return computed.sampled;
}

}  // namespace refrain::model
