#include "refrain/model/model_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/ops/sample/sample.h"
#include "refrain/ops/step_advance/step_advance.h"

namespace refrain::model {
namespace {

uint32_t cached_tokens(const Config& config, const RunnerOptions& options) {
  if (options.context_tokens > config.context_tokens) {
    throw InvalidArgument(fmt::format("[model_runner] context: the model's is {} tokens, got {}",
                                      config.context_tokens, options.context_tokens));
  }
  return options.context_tokens != 0 ? options.context_tokens : config.context_tokens;
}

const std::vector<uint32_t>& checked_capacities(const RunnerOptions& options) {
  const std::vector<uint32_t>& capacities = options.capacities;
  const bool ascending = std::ranges::adjacent_find(capacities, std::greater_equal<>()) == capacities.end();
  if (capacities.empty() || capacities.front() == 0 || !ascending) {
    throw InvalidArgument("[model_runner] capacities: expected ascending numbers of rows");
  }
  return capacities;
}

/// Two rows of one position would write the same cache entry, in no order.
void check_distinct(std::span<const StepRow> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = i + 1; j < rows.size(); ++j) {
      if (rows[i].sequence != rows[j].sequence || rows[i].position != rows[j].position) continue;
      throw InvalidArgument(
          fmt::format("[batch] rows {} and {}: expected distinct positions, got {} of sequence {}", i, j,
                      rows[i].position, rows[i].sequence));
    }
  }
}

std::string describe_status(uint32_t bits) {
  constexpr std::pair<uint32_t, const char*> kTexts[] = {
      {ops::kTokenOutOfRange, "a token id outside the vocabulary"},
      {ops::kPositionOutOfRange, "a position outside the cache"},
      {ops::kPageOutOfRange, "a cache page out of range"},
      {ops::kSequenceOutOfRange, "a row of a sequence that does not exist"},
      {ops::kOutputOutOfRange, "an output of a row that is not live"},
      {ops::kNotFinite, "logits that are not finite, from weights that are not or from overflow"},
  };
  std::string text;
  for (const auto& [bit, what] : kTexts) {
    if ((bits & bit) != 0) text += (text.empty() ? "" : ", ") + std::string(what);
  }
  return text.empty() ? fmt::format("status {:#x}", bits) : text;
}

}  // namespace

ModelRunner::ModelRunner(const Model& model, const RunnerOptions& options)
    : device_(model.device()),
      model_(model),
      context_tokens_(cached_tokens(model.config(), options)),
      cache_(device_, model.config(), options.sequences, context_tokens_) {
  const std::vector<uint32_t>& capacities = checked_capacities(options);
  const uint32_t vocab = config().vocab;
  logits_ = device_.buffer(DType::f32, {capacities.back(), vocab}, "logits");
  if (!options.allowed_ids.empty()) {
    if (options.allowed_ids.size() != ceil_div(vocab, 32u)) {
      throw InvalidArgument(fmt::format("[model_runner] allowed_ids: expected {} words, got {}",
                                        ceil_div(vocab, 32u), options.allowed_ids.size()));
    }
    allowed_ = device_.buffer(DType::u32, {static_cast<int64_t>(options.allowed_ids.size())}, "allowed ids");
    device_.write(allowed_, options.allowed_ids);
  }

  members_.reserve(capacities.size());
  size_t arena_bytes = 0;
  for (const uint32_t rows : capacities) {
    members_.push_back(record(options, rows));
    arena_bytes = std::max(arena_bytes, members_.back().plan.arena_bytes());
  }
  // Programs of one queue run one after the other, so one arena serves them all.
  arena_ = device_.buffer(DType::u8, {static_cast<int64_t>(arena_bytes)}, "arena");
  for (Member& member : members_) member.program = device_.prepare(member.plan, {.arena = arena_});
}

ModelRunner::Member ModelRunner::record(const RunnerOptions& options, uint32_t rows) {
  const StepLayout layout{rows, std::min(rows, options.sequences), cache_.pages()};
  Member member{StepBlock(device_, layout),
                device_.buffer(DType::u32, {int64_t{layout.sequences} + 1}, "status", MemoryKind::host),
                device_.buffer(DType::u32, {int64_t{layout.rows}}, "tokens", MemoryKind::host),
                false,
                {},
                {},
                {}};
  const StepBlock& step = member.step;
  const Buffer logits = logits_.slice(0, rows).with_live_rows(step.live_outputs);

  CommandEncoder encoder = device_.encoder();
  model_.architecture().record(encoder, {step, cache_, member.status, logits});
  encoder.label("sample");
  ops::sample(encoder, {.logits = logits,
                        .index = step.outputs,
                        .step_rows = step.rows,
                        .sequences = step.sequences,
                        .allowed = allowed_,
                        .status = member.status});
  encoder.label("advance");
  ops::step_advance(encoder, {.rows = step.rows,
                              .sequences = step.sequences,
                              .tokens = member.tokens.with_live_rows(step.live_rows)});
  std::tie(member.plan, member.report) = device_.plan(encoder.finish(), options.plan);
  return member;
}

StepSequence ModelRunner::sequence(uint32_t index, uint32_t length) const {
  StepSequence sequence;
  sequence.length = length;
  sequence.pages = cache_.pages_per_sequence();
  sequence.first_page = index * sequence.pages;
  return sequence;
}

Point ModelRunner::submit(const Batch& batch) {
  check_distinct(batch.rows);
  const auto member = std::ranges::find_if(members_, [&](const Member& m) {
    return m.step.layout.rows >= batch.rows.size() && m.step.layout.sequences >= batch.sequences.size();
  });
  if (member == members_.end()) {
    throw InvalidArgument(
        fmt::format("[model_runner] batch: expected at most {} rows, got {} of {} sequences", max_rows(),
                    batch.rows.size(), batch.sequences.size()));
  }
  member->step.encode(batch, cache_.page_table(), image_);
  const Update update{member->step.block, image_};
  last_ = &*member;
  member->submitted = true;
  last_point_ = device_.submit(member->program, std::span(&update, 1));
  return last_point_;
}

Point ModelRunner::submit_next() {
  if (last_ == nullptr) throw InvalidArgument("[model_runner] submit_next: nothing was submitted before");
  last_->submitted = true;
  last_point_ = device_.submit(last_->program);
  return last_point_;
}

void ModelRunner::wait(std::chrono::nanoseconds timeout) {
  if (last_ == nullptr) throw InvalidArgument("[model_runner] wait: nothing was submitted before");
  device_.wait(last_point_, timeout);
  std::string failure;
  for (Member& member : members_) {
    if (!std::exchange(member.submitted, false)) continue;
    const std::span<uint32_t> status = member.status.span<uint32_t>();
    for (size_t i = 0; i < status.size(); ++i) {
      const uint32_t bits = std::exchange(status[i], 0u);
      if (bits == 0 || !failure.empty()) continue;
      const std::string who = i + 1 < status.size() ? fmt::format("sequence {}", i) : "no sequence";
      failure = fmt::format("[step] {}: {}", who, describe_status(bits));
    }
  }
  if (!failure.empty()) throw InvalidArgument(failure);
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
  return last_->tokens.span<const uint32_t>()[row];
}

}  // namespace refrain::model
