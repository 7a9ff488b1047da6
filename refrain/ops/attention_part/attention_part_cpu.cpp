// The parts of attention, portable kernel: the text of `attention`.
#include "refrain/ops/attention/attention_walk.h"
#include "refrain/ops/attention_part/attention_part.h"

namespace refrain::ops {
namespace {

constexpr backend::TileKernel kTiles = {
    .tiles = [](const backend::TileArgs& args, uint32_t begin, uint32_t end) {
      attention_part_tiles(attention_cpu, args, begin, end);
    }};

}  // namespace

std::span<const backend::Kernel> attention_part_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_part_f32",
      .op = &attention_part_schema,
      .numerics = kAttentionNumerics,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = attention_part_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
