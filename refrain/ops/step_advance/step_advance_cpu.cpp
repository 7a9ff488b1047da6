// Advance of the slots, portable kernel: one tile, since results are appended in the order of the segments.
#include "refrain/ops/step_advance/advance_slots.h"
#include "refrain/ops/step_advance/step_advance.h"

namespace refrain::ops {
namespace {

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  if (begin != end)
    advance_slots(args.constants_as<StepAdvanceConstants>(), args.args, *args.arg<RingHeader>(5));
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> step_advance_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "step_advance_u32",
      .op = &step_advance_schema,
      .numerics = "exact, integer",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = [](const backend::OpCall&, const backend::DeviceInfo&) { return backend::Launch{}; },
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
