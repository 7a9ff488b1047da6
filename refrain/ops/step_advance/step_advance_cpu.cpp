// Advance of the step block, portable kernel: one tile, since rows may share a sequence.
#include "refrain/ops/step_advance/step_advance.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<StepAdvanceConstants>();
  StepSequence* sequences = args.arg<StepSequence>(1);
  uint32_t* tokens = args.arg<uint32_t>(2);
  if (begin == end) return;
  for (size_t r = 0; r < args.live_rows; ++r) {
    StepRow& row = args.arg<StepRow>(0)[r];
    row.token = row.sampled;
    if (tokens != nullptr) tokens[r] = row.sampled;
    if (row.position != UINT32_MAX) ++row.position;
    if (row.sequence < c.sequences) {
      sequences[row.sequence].length = row.position == UINT32_MAX ? UINT32_MAX : row.position + 1;
    }
  }
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const uint32_t rows = call.constants_as<StepAdvanceConstants>().rows;
  return {.rows = rows, .rows_per_block = rows};
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> step_advance_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "step_advance_u32",
      .op = &step_advance_schema,
      .numerics = "exact, integer",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
