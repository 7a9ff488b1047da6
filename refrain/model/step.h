// The step of one capacity on a device: the block that the host sends, and what it resolves to.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/ops/step_block.h"

namespace refrain::model {

using ops::StepLayout;
using ops::StepRequest;
using ops::StepRow;

/// One step, as the host describes it.
struct Batch {
  std::span<const StepRequest> requests;  ///< each of another slot
  std::span<const uint32_t> tokens;       ///< of all requests in turn; the first of each may be kLastToken
  std::span<const uint32_t> outputs;      ///< indices of tokens after which one is drawn, each once
};

/// A block on its way to the device, with what encoding it takes; used again for the next.
struct StepImage {
  StepImage(const StepLayout& most, uint32_t slots);

  std::vector<std::byte> bytes;
  std::vector<uint64_t> seen;  ///< of each slot: the last step that had it
  uint64_t step = 0;
};

/// The memory of one capacity and its parts as buffers.
struct StepBlock {
  StepBlock(Device& device, const StepLayout& layout);

  StepLayout layout;
  Buffer block;         ///< u32 [layout.block_bytes() / 4], sent by the host
  Buffer live;          ///< u32 [4], a StepHeader
  Buffer live_rows;     ///< u32 [1]
  Buffer live_outputs;  ///< u32 [1]
  Buffer rows;          ///< u32 [rows, 4], live_rows of them live
  Buffer segments;      ///< u32 [segments, 4]
  Buffer outputs;       ///< u32 [outputs], live_outputs of them live

  /// Writes the block of `batch` to `image`. O(requests + tokens). Throws InvalidArgument when the batch exceeds
  /// the layout, names a slot that does not exist or one twice, or an output is not one of its tokens.
  void encode(const Batch& batch, StepImage& image) const;
};

}  // namespace refrain::model
