// Begin of a step, portable kernel: one tile, since where a request's tokens begin depends on those before it.
#include "refrain/ops/step_begin/resolve_step.h"
#include "refrain/ops/step_begin/step_begin.h"

namespace refrain::ops {
namespace {

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  if (begin != end) resolve_step(args.constants_as<StepBeginConstants>(), args.args);
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> step_begin_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "step_begin_u32",
      .op = &step_begin_schema,
      .numerics = "exact, integer",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = [](const backend::OpCall&, const backend::DeviceInfo&) { return backend::Launch{}; },
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
