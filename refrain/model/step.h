// The step block on a device: its memory, the views that ops bind, and the image that the host sends.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "refrain/device/device.h"
#include "refrain/ops/step_block.h"

namespace refrain::model {

using ops::StepLayout;
using ops::StepRow;
using ops::StepSequence;

/// One step, as the host describes it.
struct Batch {
  std::span<const StepRow> rows;            ///< tokens to compute
  std::span<const StepSequence> sequences;  ///< what the rows' `sequence` points into
  std::span<const uint32_t> outputs;        ///< indices of rows whose logits are wanted, each once
};

/// The memory of one step block and its parts as buffers.
struct StepBlock {
  StepBlock(Device& device, const StepLayout& layout);

  StepLayout layout;
  Buffer block;         ///< u8 [layout.bytes()]
  Buffer live_rows;     ///< u32 [1]
  Buffer live_outputs;  ///< u32 [1]
  Buffer rows;          ///< u32 [rows, 4], live_rows of them live
  Buffer sequences;     ///< u32 [sequences, 8]
  Buffer outputs;       ///< u32 [rows], live_outputs of them live
  Buffer page_table;    ///< u32 [pages]

  /// Writes the image of `batch` with `page_table` to `image`, whose size becomes layout.bytes(). Throws
  /// InvalidArgument when the batch exceeds the layout or an output is not one of its rows.
  void encode(const Batch& batch, std::span<const uint32_t> page_table, std::vector<std::byte>& image) const;
};

}  // namespace refrain::model
