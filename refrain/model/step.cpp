#include "refrain/model/step.h"

#include <fmt/format.h>

#include <cstring>

#include "refrain/core/error.h"

namespace refrain::model {

StepBlock::StepBlock(Device& device, const StepLayout& step_layout)
    : layout(step_layout),
      block(device.buffer(DType::u8, {static_cast<int64_t>(layout.bytes())}, "step block")) {
  live_rows = block.view(DType::u32, {1}, offsetof(ops::StepHeader, rows));
  live_outputs = block.view(DType::u32, {1}, offsetof(ops::StepHeader, outputs));
  rows = block.view(DType::u32, {layout.rows, sizeof(StepRow) / 4}, layout.rows_offset_bytes())
             .with_live_rows(live_rows);
  sequences =
      block.view(DType::u32, {layout.sequences, sizeof(StepSequence) / 4}, layout.sequences_offset_bytes());
  outputs = block.view(DType::u32, {layout.rows}, layout.outputs_offset_bytes()).with_live_rows(live_outputs);
  page_table = block.view(DType::u32, {layout.pages}, layout.page_table_offset_bytes());
}

void StepBlock::encode(const Batch& batch, std::span<const uint32_t> pages,
                       std::vector<std::byte>& image) const {
  const auto check = [](const char* what, size_t most, size_t got) {
    if (got > most)
      throw InvalidArgument(fmt::format("[batch] {}: expected at most {}, got {}", what, most, got));
  };
  check("rows", layout.rows, batch.rows.size());
  check("sequences", layout.sequences, batch.sequences.size());
  check("outputs", layout.rows, batch.outputs.size());
  check("page table", layout.pages, pages.size());
  for (const uint32_t output : batch.outputs) {
    if (output >= batch.rows.size()) {
      throw InvalidArgument(
          fmt::format("[batch] outputs: expected rows below {}, got {}", batch.rows.size(), output));
    }
  }

  image.assign(layout.bytes(), std::byte{0});
  const auto put = [&](size_t offset, std::span<const std::byte> bytes) {
    if (!bytes.empty()) std::memcpy(image.data() + offset, bytes.data(), bytes.size());
  };
  const ops::StepHeader header{static_cast<uint32_t>(batch.rows.size()),
                               static_cast<uint32_t>(batch.sequences.size()),
                               static_cast<uint32_t>(batch.outputs.size()), 0};
  put(0, std::as_bytes(std::span(&header, 1)));
  put(layout.rows_offset_bytes(), std::as_bytes(batch.rows));
  put(layout.sequences_offset_bytes(), std::as_bytes(batch.sequences));
  put(layout.outputs_offset_bytes(), std::as_bytes(batch.outputs));
  put(layout.page_table_offset_bytes(), std::as_bytes(pages));
}

}  // namespace refrain::model
