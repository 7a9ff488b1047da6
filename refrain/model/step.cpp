#include "refrain/model/step.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "refrain/core/error.h"

namespace refrain::model {
namespace {

void check_at_most(const char* what, size_t most, size_t got) {
  if (got > most)
    throw InvalidArgument(fmt::format("[batch] {}: expected at most {}, got {}", what, most, got));
}

/// Tokens of the requests; each slot once, so that no two rows are one position of one slot.
size_t check_requests(const Batch& batch, StepImage& image) {
  ++image.step;
  size_t tokens = 0;
  for (size_t i = 0; i < batch.requests.size(); ++i) {
    const StepRequest& request = batch.requests[i];
    if (request.slot >= image.seen.size()) {
      throw InvalidArgument(fmt::format("[batch] request {}: expected a slot below {}, got {}", i,
                                        image.seen.size(), request.slot));
    }
    if (std::exchange(image.seen[request.slot], image.step) == image.step) {
      throw InvalidArgument(
          fmt::format("[batch] request {}: expected distinct slots, got {} again", i, request.slot));
    }
    if (request.rows == 0)
      throw InvalidArgument(fmt::format("[batch] request {}: expected tokens, got none", i));
    tokens += request.rows;
  }
  return tokens;
}

}  // namespace

StepImage::StepImage(const StepLayout& most, uint32_t slots) : seen(slots) {
  bytes.reserve(most.block_bytes());
}

StepBlock::StepBlock(Device& device, const StepLayout& step_layout) : layout(step_layout) {
  // The host writes the block, the device the rest: they share no cache line.
  const size_t live_at = align_up(layout.block_bytes(), 64);
  const size_t rows_at = live_at + sizeof(ops::StepHeader);
  const size_t segments_at = rows_at + layout.rows * sizeof(StepRow);
  const size_t outputs_at = segments_at + layout.segments * sizeof(ops::StepSegment);
  const auto bytes = static_cast<int64_t>(outputs_at + layout.outputs * sizeof(uint32_t));
  const Buffer memory = device.buffer(DType::u8, {bytes}, "step block");
  block = memory.view(DType::u32, {static_cast<int64_t>(layout.block_bytes() / 4)}, 0);
  live = memory.view(DType::u32, {sizeof(ops::StepHeader) / 4}, live_at);
  live_rows = memory.view(DType::u32, {1}, live_at + offsetof(ops::StepHeader, rows));
  live_outputs = memory.view(DType::u32, {1}, live_at + offsetof(ops::StepHeader, outputs));
  rows = memory.view(DType::u32, {layout.rows, sizeof(StepRow) / 4}, rows_at).with_live_rows(live_rows);
  segments = memory.view(DType::u32, {layout.segments, sizeof(ops::StepSegment) / 4}, segments_at);
  outputs = memory.view(DType::u32, {layout.outputs}, outputs_at).with_live_rows(live_outputs);
}

void StepBlock::encode(const Batch& batch, StepImage& image) const {
  check_at_most("requests", layout.segments, batch.requests.size());
  check_at_most("tokens", layout.rows, batch.tokens.size());
  check_at_most("outputs", layout.outputs, batch.outputs.size());
  if (const size_t tokens = check_requests(batch, image); tokens != batch.tokens.size()) {
    throw InvalidArgument(
        fmt::format("[batch] tokens: expected the {} of the requests, got {}", tokens, batch.tokens.size()));
  }
  for (const uint32_t output : batch.outputs) {
    if (output >= batch.tokens.size()) {
      throw InvalidArgument(
          fmt::format("[batch] outputs: expected tokens below {}, got {}", batch.tokens.size(), output));
    }
  }

  const ops::StepHeader header{static_cast<uint32_t>(batch.tokens.size()),
                               static_cast<uint32_t>(batch.requests.size()),
                               static_cast<uint32_t>(batch.outputs.size()), 0};
  image.bytes.resize(StepLayout::block_bytes(header.rows, header.segments, header.outputs));
  std::byte* to = image.bytes.data();
  for (const std::span<const std::byte> part :
       {std::as_bytes(std::span(&header, 1)), std::as_bytes(batch.requests), std::as_bytes(batch.tokens),
        std::as_bytes(batch.outputs)}) {
    if (!part.empty()) std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
}

}  // namespace refrain::model
