// quantized_matmul: kernels for AVX2, one for each width of code and type of scale.
#include "refrain/backend/features.h"
#include "refrain/ops/affine_avx2.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul_avx2.h"
#include "refrain/ops/quantized_matmul/quantized_matmul.h"

namespace refrain::ops {
namespace {

template <uint32_t Bits, class Scale>
bool accepts(const backend::OpCall& call) {
  const backend::ArgumentInfo& weight = call.args[1];
  return weight.layout == &mlx_affine_rows() && weight.weight->bits == Bits &&
         weight.weight->dtype == DTypeOf<Scale>::value;
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<QuantizedMatmulConstants>();
  return matmul_launch(c.rows, c.outputs, c.columns, avx2::panel_bytes(c.columns));
}

template <uint32_t Bits, class Scale>
void region(const backend::TileArgs& args, const MatmulTile& tile) {
  const auto& c = args.constants_as<QuantizedMatmulConstants>();
  const avx2::AffineRows<Bits, Scale> weights(args.arg<const std::byte>(1), c.weight());
  avx2::matmul_region<QuantizedMatmulConstants>(args, weights, tile);
}

template <uint32_t Bits, class Scale>
constexpr backend::Kernel kernel(std::string_view name) {
  return {.name = name,
          .op = &quantized_matmul_schema,
          .numerics = "exact, f32, avx2 fma, 8 lanes, ascending",
          .needs = backend::kFeatureAvx2,
          .accepts = accepts<Bits, Scale>,
          .launch = launch,
          .entry = &kMatmulEntry<QuantizedMatmulConstants, region<Bits, Scale>>,
          .regions = true,
          .unit_granule = kMatmulOutputs};
}

}  // namespace

std::span<const backend::Kernel> quantized_matmul_cpu_avx2_kernels() {
  static constexpr backend::Kernel kKernels[] = {
      kernel<4, bf16>("quantized_matmul_affine4_bf16_avx2"),
      kernel<4, f16>("quantized_matmul_affine4_f16_avx2"),
      kernel<4, float>("quantized_matmul_affine4_f32_avx2"),
      kernel<8, bf16>("quantized_matmul_affine8_bf16_avx2"),
      kernel<8, f16>("quantized_matmul_affine8_f16_avx2"),
      kernel<8, float>("quantized_matmul_affine8_f32_avx2"),
  };
  return kKernels;
}

}  // namespace refrain::ops
