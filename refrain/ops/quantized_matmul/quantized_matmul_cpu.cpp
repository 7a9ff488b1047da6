// quantized_matmul: portable kernel.
#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul_portable.h"
#include "refrain/ops/quantized_matmul/quantized_matmul.h"

namespace refrain::ops {
namespace {

struct Rows {
  const std::byte* packed;
  AffineWeight weight;

  void widen(size_t output, float* to) const { widen_affine_row(packed, weight, output, to); }
};

bool accepts(const backend::OpCall& call) { return call.args[1].layout == &mlx_affine_rows(); }

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<QuantizedMatmulConstants>();
  return matmul_launch(c.rows, c.outputs, c.columns, c.columns * sizeof(float));
}

void region(const backend::TileArgs& args, const MatmulTile& tile) {
  const Rows weights{args.arg<const std::byte>(1), args.constants_as<QuantizedMatmulConstants>().weight()};
  portable::matmul_region<QuantizedMatmulConstants>(args, weights, tile);
}

}  // namespace

std::span<const backend::Kernel> quantized_matmul_cpu_kernels() {
  static constexpr backend::Kernel kKernels[] = {{
      .name = "quantized_matmul_affine_portable",
      .op = &quantized_matmul_schema,
      .numerics = "exact, f32, 16 lanes, ascending",
      .accepts = accepts,
      .launch = launch,
      .entry = &kMatmulEntry<QuantizedMatmulConstants, region>,
      .regions = true,
      .unit_granule = kMatmulOutputs,
  }};
  return kKernels;
}

}  // namespace refrain::ops
